"""aMUSEd's layout: the forward beside the plain model, sizes, pictures, LoRA, whole folders."""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_models import CPU, HEIGHT, PROMPTS, WIDTH, canvases, folder, load, logits
from PIL import Image

from image_gen.masked.models import tiny
from image_gen.pipelines import lora
from image_gen.pipelines.base import PictureModel
from image_gen.pipelines.loading import load_image_model
from mmrl.errors import UserError


@pytest.fixture
def model() -> Any:
    return load(folder("halved"))


def plain(path: Path) -> Any:
    """The pipeline as anybody loads it, as long as diffusers has it."""
    import diffusers

    if not hasattr(diffusers, "AmusedPipeline"):
        pytest.skip("this diffusers has no AmusedPipeline any more")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.AmusedPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plain_picture(pipe: Any, ids_nl: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = pipe(
        PROMPTS,
        latents=ids_nl.view(2, 4, 6).clone(),
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=1,
        guidance_scale=3.0,
        output_type="pt",
    ).images
    return found


def trained(path: Path) -> Any:
    """A model whose adapter is no longer zero."""
    model = load(path)
    lora.attach_lora(model, rank=2, alpha=6)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def test_what_a_model_says_of_itself(model: Any) -> None:
    assert isinstance(model, PictureModel)
    assert (model.codebook, model.mask_id, model.feature_width, model.guidance) == (8, 31, 8, 10.0)
    assert type(model.scheduler).__name__ == "AmusedScheduler"
    assert sum(p.numel() for p in load(folder("even")).transformer.parameters()) < 5_152
    assert sum(p.numel() for p in model.transformer.parameters()) == 5_152


def test_codebook_smaller_than_the_vocabulary(model: Any) -> None:
    """Of 32 ids that can be read, 8 can be drawn; even a network that answers for all 32 is cut to them."""
    assert model.config.vocab_size == 32
    assert logits(model).shape == (2, 24, 8)
    head = model.transformer.mlm_layer
    head.conv2 = torch.nn.Conv2d(8, 32, kernel_size=1, bias=False)
    assert logits(model).shape == (2, 24, 8)


def test_logits_are_those_of_the_model_called_by_hand(model: Any) -> None:
    ids_nl, parts = canvases(), model.pipe
    read = parts.tokenizer(PROMPTS, return_tensors="pt", padding="max_length", max_length=77, truncation=True)
    with torch.no_grad():
        told = parts.text_encoder(read.input_ids, output_hidden_states=True)
        by_hand = model.transformer(
            ids_nl.view(2, 4, 6),
            encoder_hidden_states=told.hidden_states[-2],
            pooled_text_emb=told.text_embeds,
            micro_conds=torch.tensor([[12.0, 8.0, 0.0, 0.0, 6.0]] * 2),  # width first
        )
    got = logits(model, ids_nl)
    for row, column in ((0, 0), (1, 3), (3, 5)):
        assert torch.equal(got[:, row * 6 + column], by_hand[:, :, row, column])
    assert got.std() > 0.1 and (got[0] - logits(model, ids_nl, prompts=["x", "y"])[0]).abs().max() > 1e-3


def test_both_halves_are_what_the_plain_pipeline_mixes(model: Any) -> None:
    """The unconditional half is the empty prompt's; rows do not see each other."""
    pipe, seen, answers = plain(folder("halved")), [], []
    pipe.transformer.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    pipe.transformer.register_forward_hook(lambda net, args, out: answers.append(out))
    pipe(PROMPTS, height=HEIGHT, width=WIDTH, num_inference_steps=2, guidance_scale=3.0, output_type="latent")
    for canvas_nhw, answer in zip(seen, answers, strict=True):
        want = answer.flatten(2).transpose(1, 2)
        ids_nl = canvas_nhw.flatten(1)
        torch.testing.assert_close(logits(model, ids_nl, prompts=["", "", *PROMPTS]), want, atol=1e-5, rtol=0)
        torch.testing.assert_close(logits(model, ids_nl[3:], prompts=PROMPTS[1:]), want[3:], atol=1e-5, rtol=0)
    assert len(seen) == 2 and not torch.equal(seen[0], seen[1])


def test_pictures_are_those_of_the_plain_pipeline(model: Any) -> None:
    ids_nl = canvases(open_share=0.0)
    picture_n = model.decode(ids_nl, height=HEIGHT, width=WIDTH)
    assert picture_n.shape == (2, 3, HEIGHT, WIDTH) and picture_n.dtype == torch.float32
    assert picture_n.std() > 0.1 and picture_n.min() >= 0 and picture_n.max() <= 1
    torch.testing.assert_close(picture_n, plain_picture(plain(folder("halved")), ids_nl), atol=1e-5, rtol=0)


def test_decoding_is_safe(model: Any) -> None:
    with pytest.raises(ValueError, match=r"ids must be within 0 \.\. 7; is a position still open\?"):
        model.decode(canvases(), height=HEIGHT, width=WIDTH)
    with torch.no_grad():
        model.pipe.vqvae.decoder.conv_out.bias[0] = float("nan")
    picture_n = model.decode(canvases(open_share=0.0), height=HEIGHT, width=WIDTH)
    assert torch.isfinite(picture_n).all() and not picture_n[:, 0].any() and picture_n[:, 1].any()
    assert model.decode(canvases(n=0), height=HEIGHT, width=WIDTH).shape == (0, 3, HEIGHT, WIDTH)


def test_tokens_of_a_picture_are_the_nearest_entries(model: Any) -> None:
    picture = torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    ids_l = model.tokenise(picture, height=HEIGHT, width=WIDTH)
    assert ids_l.shape == (24,) and ids_l.dtype == torch.int64 and len(ids_l.unique()) > 1
    with torch.no_grad():
        found = model.pipe.vqvae.encode(picture[None]).latents[0].flatten(1).T
    entries = model.pipe.vqvae.quantize.embedding.weight
    assert ids_l.tolist() == (found[:, None] - entries).square().sum(-1).argmin(1).tolist()
    white = Image.new("RGB", (WIDTH, HEIGHT), "white")
    assert torch.equal(
        model.tokenise(white, height=HEIGHT, width=WIDTH),
        model.tokenise(torch.ones(3, HEIGHT, WIDTH), height=HEIGHT, width=WIDTH),
    )
    with pytest.raises(UserError, match="the size is 12x8, the model is trained at 8x12; resize it"):
        model.tokenise(white.transpose(Image.Transpose.ROTATE_90), height=HEIGHT, width=WIDTH)


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("halved", (8, 12), (4, 6)),
        ("halved", (64, 64), (32, 32)),
        ("even", (16, 16), (16, 16)),
        ("even", (5, 3), (5, 3)),
    ],
)
def test_the_grid(name: str, size: tuple[int, int], grid: tuple[int, int]) -> None:
    """(32, 32): 1024 tokens, the canvas of aMUSEd-512; (16, 16): 256, that of aMUSEd-256."""
    model = load(folder(name))
    assert model.grid(*size) == grid
    tokens = grid[0] * grid[1]
    with torch.no_grad():
        found = model.predict(
            canvases(n=1, tokens=tokens),
            model.collate(model.encode(PROMPTS[:1])),
            height=size[0],
            width=size[1],
            features=True,
        )
    assert found.logits_nlk.shape == found.features_nld.shape == (1, tokens, 8)
    assert model.decode(canvases(n=1, tokens=tokens, open_share=0.0), height=size[0], width=size[1]).shape[2:] == size


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("halved", (8, 10), "AmusedPipeline takes a width in steps of 4, got 10; nearest: 8 or 12"),
        ("halved", (6, 8), "AmusedPipeline takes a height in steps of 4, got 6; nearest: 4 or 8"),
        ("even", (0, 8), "AmusedPipeline takes a height in steps of 1, got 0; nearest: 1"),
    ],
)
def test_sizes_that_do_not_fit(name: str, size: tuple[int, int], message: str) -> None:
    model = load(folder(name))
    for ask in (model.check_size, model.grid):
        with pytest.raises(UserError) as caught:
            ask(*size)
        assert str(caught.value) == f"picture size {size[0]}x{size[1]}: {message}"


def test_features_are_what_the_head_reads_and_carry_the_graph(model: Any) -> None:
    batch = model.collate(model.encode(PROMPTS))
    found = model.predict(canvases(), batch, height=HEIGHT, width=WIDTH, features=True)
    read = found.features_nld.transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(model.transformer.mlm_layer(read).flatten(2).transpose(1, 2), found.logits_nlk)
    assert found.features_nld.requires_grad and not model.transformer.mlm_layer._forward_pre_hooks
    assert model.predict(canvases(), batch, height=HEIGHT, width=WIDTH).features_nld is None


def test_conditions_and_encoders(model: Any) -> None:
    told, untold = model.encode(["a", ""])
    assert {k: v.shape for k, v in told.items()} == {"encoder_hidden_states": (77, 8), "pooled_text_emb": (8,)}
    assert not torch.equal(told["pooled_text_emb"], untold["pooled_text_emb"])
    assert model.overlong(["x" * 75, "x" * 80]) == [0, 5]  # with the two marks around a prompt
    model.rest_encoders()
    model.free_encoders()
    with pytest.raises(RuntimeError, match="have been freed"):
        model.encode(["a"])
    assert model.overlong(["x" * 80]) == [5]


def test_dtypes() -> None:
    model = load(folder("halved"), dtype=torch.bfloat16)
    assert {p.dtype for p in model.transformer.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.pipe.vqvae.parameters()} == {torch.float32}
    assert model.encode(["a"])[0]["pooled_text_emb"].dtype == torch.bfloat16
    lora.attach_lora(model, rank=2, alpha=4)
    assert logits(model).dtype == torch.bfloat16 and torch.isfinite(logits(model)).all()
    assert {p.dtype for p in model.transformer.parameters() if p.requires_grad} == {torch.float32}
    mixed = load(folder("halved"), dtype=torch.bfloat16, transformer_dtype=torch.float32)
    assert (mixed.transformer.dtype, mixed.pipe.text_encoder.dtype) == (torch.float32, torch.bfloat16)
    assert logits(mixed).dtype == torch.float32
    assert not [n for n in ("vqvae", "text_encoder") for p in getattr(mixed.pipe, n).parameters() if p.requires_grad]
    assert all(p.requires_grad for p in mixed.transformer.parameters()) and not mixed.transformer.training


@pytest.mark.parametrize("adapter", [False, True])
def test_gradient_checkpointing_changes_no_gradient(adapter: bool) -> None:
    model = trained(folder("halved")) if adapter else load(folder("halved"))
    calls: list[int] = []
    model.transformer.transformer_layers[0].attn2.to_q.register_forward_hook(lambda *_: calls.append(1))

    def grads() -> dict[str, torch.Tensor]:
        model.transformer.zero_grad()
        logits(model).square().mean().backward()
        return {n: p.grad.clone() for n, p in model.transformer.named_parameters() if p.grad is not None}

    want = grads()
    assert len(calls) == 1 and {n for n in want if ".lora_" in n} == (set(want) if adapter else set())
    model.checkpoint_gradients()
    model.checkpoint_gradients()
    got = grads()
    assert len(calls) == 3  # once more in the backward pass
    assert got.keys() == want.keys() and all(torch.equal(got[n], want[n]) for n in want)
    with torch.no_grad():
        logits(model)
    copy = load(folder("halved"))
    copy.transformer = deepcopy(model.transformer)
    with torch.no_grad():
        copy.transformer.transformer_layers[0].norm1.linear.weight.mul_(3)
    assert (logits(copy) - logits(model)).abs().max() > 1e-4
    del calls[:]
    model.checkpoint_gradients(on=False)
    grads()
    assert len(calls) == 1


def test_every_parameter_of_the_adapter_gets_a_gradient() -> None:
    model = trained(folder("halved"))
    logits(model).square().mean().backward()
    assert not [n for n, p in model.transformer.named_parameters() if p.requires_grad and not p.grad.any()]
    adapted = {n.split(".lora_")[0] for n, p in model.transformer.named_parameters() if p.requires_grad}
    attention = {f"{a}.{n}" for a in ("attn1", "attn2") for n in ("to_q", "to_k", "to_v", "to_out.0")}
    assert {n.removeprefix("transformer_layers.0.") for n in adapted if n.startswith("transformer")} == {
        *attention,
        "ff.net.0.proj",
        "ff.net.2",
    }
    for end in ("down", "up"):
        start = f"{end}_block.attention_blocks.0."
        assert {n.removeprefix(start) for n in adapted if n.startswith(start)} == attention


def test_a_fresh_adapter_is_the_base_and_a_trained_one_can_be_switched_off(model: Any) -> None:
    with torch.no_grad():
        want = logits(model)
        lora.attach_lora(model, rank=2, alpha=4)
        torch.testing.assert_close(logits(model), want, atol=1e-6, rtol=0)
        changed = trained(folder("halved"))
        on = logits(changed)
        with lora.reference(changed):
            torch.testing.assert_close(logits(changed), want, atol=1e-6, rtol=0)
        assert torch.equal(logits(changed), on) and (on - want).abs().max() > 1e-2


def test_a_stored_lora_is_the_same_here_and_in_plain_diffusers(tmp_path: Path) -> None:
    from diffusers import UVit2DModel

    model = trained(folder("halved"))
    model.save_lora(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    again = load(folder("halved"))
    again.load_lora(tmp_path)
    with torch.no_grad():
        want = logits(model)
        assert torch.equal(logits(again), want)
        assert {n for n, p in again.transformer.named_parameters() if p.requires_grad} == {
            n for n, p in model.transformer.named_parameters() if p.requires_grad
        }
        theirs = load(folder("halved"))
        theirs.transformer = UVit2DModel.from_pretrained(folder("halved"), subfolder="transformer").eval()
        theirs.transformer.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors")
        (config,) = theirs.transformer.peft_config.values()
        assert (config.r, config.lora_alpha) == (2, 6)
        torch.testing.assert_close(logits(theirs), want, atol=1e-6, rtol=0)
        lora.merge(model)
        torch.testing.assert_close(logits(model), want, atol=1e-5, rtol=0)


def test_a_lora_of_another_model(tmp_path: Path) -> None:
    trained(folder("halved")).save_lora(tmp_path / "lora")
    digits = load_image_model("embedded:flow", dtype=torch.float32, device=CPU)
    with pytest.raises(UserError, match="it was made for a UVit2DModel, this is a SD3Transformer2DModel"):
        digits.load_lora(tmp_path / "lora")


def test_a_whole_model_is_the_same_here_and_in_plain_diffusers(tmp_path: Path) -> None:
    model = load(folder("halved"))
    before = logits(model)
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.mul_(1.1)
        want = logits(model)
    model.free_encoders()  # they are stored all the same
    model.save(tmp_path / "whole")
    assert (want - before).abs().max() > 1e-2
    again = load(tmp_path / "whole")
    with torch.no_grad():
        assert torch.equal(logits(again), want)
    lora.attach_lora(again, rank=2, alpha=4)
    with pytest.raises(ValueError, match="a LoRA is attached"):
        again.save(tmp_path / "no")
    pipe = plain(tmp_path / "whole")
    ids_nl = canvases(open_share=0.0)
    torch.testing.assert_close(
        plain_picture(pipe, ids_nl), model.decode(ids_nl, height=HEIGHT, width=WIDTH), atol=1e-5, rtol=0
    )
    assert all(torch.equal(p, q) for p, q in zip(pipe.transformer.parameters(), model.transformer.parameters()))


def test_the_tiny_folder_leaves_the_random_state_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name in ("a", "b"):
        tiny.write(tmp_path / name, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    for file in ("transformer/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_embedded_model_is_found_by_name_and_in_a_folder(tmp_path: Path) -> None:
    model = load(Path("embedded:masked"))
    model.save(tmp_path)
    again = load(tmp_path)
    assert type(again).__name__ == "EmbeddedTokens" and again.codebook == model.codebook
    assert all(torch.equal(p, q) for p, q in zip(again.transformer.parameters(), model.transformer.parameters()))
