"""LoRA and whole models, stored by us and read by plain diffusers; what is trained and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_cases import CASES, PROMPTS, draw_plain, load, noise, plain, velocity, walk

from image_gen.pipelines import lora, tiny
from mmrl.errors import UserError


def trained(folder: Path, **options: Any) -> Any:
    """A model whose adapter is no longer zero."""
    model = load(folder)
    lora.attach_lora(model, **{"rank": 4, "alpha": 10, **options})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.mark.parametrize("name", CASES)
def test_a_lora_gives_plain_diffusers_our_pictures(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    case, model = CASES[name], trained(folders[name])
    start = noise(model)
    model.save_lora(tmp_path)
    got = walk(model, case, start)
    pipe = plain(folders[name])
    untrained = draw_plain(pipe, case, start, output="latent")
    pipe.load_lora_weights(tmp_path)
    config = next(iter(pipe.transformer.peft_config.values()))
    assert (config.r, config.lora_alpha) == (4, 10)
    torch.testing.assert_close(got, draw_plain(pipe, case, start, output="latent"), atol=2e-5, rtol=0)
    assert (got - untrained).abs().max() > 1e-2
    again = load(folders[name])
    again.load_lora(tmp_path)
    torch.testing.assert_close(walk(again, case, start), got, atol=1e-6, rtol=0)
    assert {n for n, p in again.transformer.named_parameters() if p.requires_grad} == {
        n for n, p in model.transformer.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("name", CASES)
def test_a_whole_model_gives_plain_diffusers_our_pictures(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    case, model = CASES[name], load(folders[name])
    start = noise(model)
    before = walk(model, case, start)
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.mul_(1.1)
    got = walk(model, case, start)
    model.free_encoders()  # they are stored all the same
    model.save(tmp_path / "whole")
    assert (got - before).abs().max() > 1e-2
    theirs = draw_plain(plain(tmp_path / "whole"), case, start, output="latent")
    torch.testing.assert_close(got, theirs, atol=2e-5, rtol=0)
    assert torch.equal(walk(load(tmp_path / "whole"), case, start), got)


def test_a_merged_adapter_is_part_of_the_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    case, model = CASES["sd3"], trained(folders["sd3"])
    start = noise(model)
    got = walk(model, case, start)
    with pytest.raises(ValueError, match="a LoRA is attached"):
        model.save(tmp_path)
    lora.merge(model)
    assert not lora.attached(model.transformer)
    model.save(tmp_path)
    torch.testing.assert_close(walk(load(tmp_path), case, start), got, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_only_the_adapter_gets_a_gradient(name: str, folders: dict[str, Path]) -> None:
    model = trained(folders[name])
    x_n, batch = noise(model), model.collate(model.encode(PROMPTS))
    velocity(model, CASES[name], x_n, 0.5, batch).square().mean().backward()
    grads = {n: p.grad for n, p in model.transformer.named_parameters()}
    assert {n for n, g in grads.items() if g is not None} <= {n for n in grads if ".lora_" in n}
    dead = [n for n, g in grads.items() if ".lora_" in n and (g is None or not g.any())]
    assert not [n for n in dead if not _context_only(n)], dead
    frozen = [
        p for part in model.pipe.components.values() if isinstance(part, torch.nn.Module) for p in part.parameters()
    ]
    assert all(p.grad is None for p in frozen if not p.requires_grad)
    kept = {k: g.clone() for k, g in grads.items() if g is not None}
    model.transformer.zero_grad()
    model.checkpoint_gradients()
    velocity(model, CASES[name], x_n, 0.5, batch).square().mean().backward()
    for n, p in model.transformer.named_parameters():
        if n in kept:
            torch.testing.assert_close(p.grad, kept[n], atol=1e-7, rtol=1e-4)


def _context_only(name: str) -> bool:
    """The last block's text stream ends nowhere."""
    return any(part in name for part in ("to_add_out", "ff_context", "txt_mlp", "add_q_proj"))


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_adapter_starts_at_the_base_and_can_be_switched_off(name: str, folders: dict[str, Path]) -> None:
    base, model = load(folders[name]), load(folders[name])
    x_n, batch = noise(base), base.collate(base.encode(PROMPTS))
    with pytest.raises(ValueError, match="no adapter"), lora.reference(model):
        pass
    lora.attach_lora(model, rank=2, alpha=4)
    changed = trained(folders[name])
    names = [n for n, p in changed.transformer.named_parameters() if p.requires_grad]
    with torch.no_grad():
        want = velocity(base, CASES[name], x_n, 0.5, batch)
        torch.testing.assert_close(velocity(model, CASES[name], x_n, 0.5, batch), want, atol=1e-6, rtol=0)
        on = velocity(changed, CASES[name], x_n, 0.5, batch)
        with lora.reference(changed):
            torch.testing.assert_close(velocity(changed, CASES[name], x_n, 0.5, batch), want, atol=1e-6, rtol=0)
        assert torch.equal(velocity(changed, CASES[name], x_n, 0.5, batch), on)
    assert (on - want).abs().max() > 1e-3
    assert [n for n, p in changed.transformer.named_parameters() if p.requires_grad] == names


def test_targets_of_flow_grpo(folders: dict[str, Path]) -> None:
    """SD3.5's second attention is left alone; FLUX's feed-forward layers and single blocks are adapted."""
    adapted = {n.split(".lora_")[0] for n, p in trained(folders["sd3"]).transformer.named_parameters() if ".lora_" in n}
    first = {n.removeprefix("transformer_blocks.0.") for n in adapted if n.startswith("transformer_blocks.0.")}
    assert first == {
        *(f"attn.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")),
        "attn.to_add_out",
    }
    flux = {n.split(".lora_")[0] for n, p in trained(folders["flux"]).transformer.named_parameters() if ".lora_" in n}
    assert "transformer_blocks.0.ff_context.net.0.proj" in flux and "single_transformer_blocks.0.attn.to_q" in flux


def test_weights_stored_in_bf16_load_in_the_dtype_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    plain(folders["sd3"]).to(torch.bfloat16).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert {p.dtype for p in model.transformer.parameters()} == {torch.float32}
    mixed = load(folders["sd3"], dtype=torch.bfloat16)
    assert mixed.transformer.dtype == mixed.pipe.text_encoder_3.dtype == torch.bfloat16
    assert {p.dtype for p in mixed.pipe.vae.parameters()} == {torch.float32}
    lora.attach_lora(mixed, rank=2, alpha=4)
    assert {p.dtype for p in mixed.transformer.parameters() if p.requires_grad} == {torch.float32}
    x_n = noise(mixed)
    v_n = velocity(mixed, CASES["sd3"], x_n, 0.5, mixed.collate(mixed.encode(PROMPTS)))
    assert v_n.dtype == torch.float32 and torch.isfinite(v_n).all()
    other = load(folders["sd3"], dtype=torch.bfloat16, transformer_dtype=torch.float32)
    assert (other.transformer.dtype, other.pipe.text_encoder.dtype) == (torch.float32, torch.bfloat16)


def test_unknown_target_and_rank(folders: dict[str, Path]) -> None:
    model = load(folders["sd3"])
    with pytest.raises(UserError, match=r"no linear layer is called 'attn.to_qq'; did you mean 'attn.to_q'\?"):
        lora.attach_lora(model, rank=2, alpha=4, targets=["attn.to_q", "attn.to_qq"])
    with pytest.raises(UserError, match="rank must be at least 1"):
        lora.attach_lora(model, rank=0, alpha=4)
    assert all(p.requires_grad for p in model.transformer.parameters())
    lora.attach_lora(model, rank=2, alpha=4, targets=["attn.to_q"])
    assert len([p for p in model.transformer.parameters() if p.requires_grad]) == 4
    with pytest.raises(ValueError, match="adapter already"):
        lora.attach_lora(model, rank=2, alpha=4)


def test_the_tiny_pipelines_leave_the_random_state_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    tiny.write("SanaPipeline", tmp_path / "a", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    tiny.write("SanaPipeline", tmp_path / "b", seed=3)
    file = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
