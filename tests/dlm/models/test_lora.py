"""Adapters: which layers, nothing at the start, stored under released names, merged, switched off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from dlm.config import Adapter, Model
from dlm.models import lora, tiny
from dlm.models.layers import Transformer
from dlm.models.loading import load_model, released_tensors, save_model
from mmrl.errors import UserError

Load = Callable[..., Transformer]


def adapter(**options: Any) -> Adapter:
    return Adapter.model_validate({"kind": "lora", "rank": 3, "alpha": 6} | options)


@torch.no_grad()
def states(model: Transformer) -> Tensor:
    ids = torch.randint(0, 250, (2, 9), generator=torch.Generator().manual_seed(2))
    return model.hidden(ids, positions_nl=torch.arange(9).expand(2, -1), attend_nqk=None)


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Equal weights at another place in memory round a little differently."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def shake(model: Transformer) -> Transformer:
    """An adapter that does something."""
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3
    return model


@pytest.fixture
def stored(load: Load, tmp_path: Path) -> Callable[..., tuple[Transformer, Path]]:
    """A model with an adapter, and where that is stored."""

    def make(kind: str, **options: Any) -> tuple[Transformer, Path]:
        model = shake(lora.attach(load(kind, torch.float32), adapter(**options), base="./base"))
        lora.save(model, tmp_path / "adapter")
        return model, tmp_path / "adapter"

    return make


# which layers


def test_all_seven_layers_by_default(load: Load) -> None:
    for kind in tiny.KINDS:
        names = lora.targets(load(kind))
        assert len(names) == 14 and not any("lm_head" in n for n in names)
    llada = load("llada")
    seven = {"q_proj": 2, "k_proj": 2, "v_proj": 2, "attn_out": 2, "ff_proj": 2, "up_proj": 2, "ff_out": 2}
    assert lora.matched(llada, lora.targets(llada)) == seven


def test_the_list_of_d1_reaches_four_layers_of_llada(load: Load) -> None:
    llada, sdar = load("llada"), load("sdar")
    found = lora.matched(llada, lora.targets(llada, "d1"))
    assert found == {"q_proj": 2, "k_proj": 2, "v_proj": 2, "up_proj": 2}
    assert lora.targets(sdar, "d1") == lora.targets(sdar)


def test_names_of_both_kinds(load: Load) -> None:
    model = load("llada")
    assert lora.targets(model, ["ff_out"]) == lora.targets(model, ["down_proj"])
    assert lora.targets(model, ["ff_out"]) == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert lora.targets(model, ["model.transformer.blocks.1.attn_out"]) == ["model.layers.1.self_attn.o_proj"]
    with pytest.raises(UserError, match="no linear layer is called 'qproj'; did you mean 'q_proj'") as caught:
        lora.targets(model, ["q_proj", "qproj"])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no linear layer is called 'lm_head'"):
        lora.targets(model, ["lm_head"])
    with pytest.raises(UserError, match=r"model.adapter.targets: \[\] names no layer; leave it out .*q_proj"):
        lora.attach(model, adapter().model_copy(update={"targets": []}))
    assert not lora.matched(model)  # as it was


# attach, switch off, merge


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_fresh_adapter_changes_nothing_and_alone_is_trained(kind: str, load: Load) -> None:
    model = load(kind)
    before = states(model)
    lora.attach(model, adapter())
    same(states(model), before)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 28 and all(".lora_" in n for n in trained)
    shake(model)
    assert (states(model) - before).abs().mean() > 0.01
    with lora.reference(model):
        same(states(model), before)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    assert (states(model) - before).abs().mean() > 0.01
    with pytest.raises(ValueError, match="has an adapter already"):
        lora.attach(model, adapter())


def test_a_bfloat16_base_keeps_a_float32_adapter(load: Load) -> None:
    model = lora.attach(load("llada", torch.bfloat16), adapter())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert states(model).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_merged(kind: str, load: Load, folders: dict[str, Path], tmp_path: Path) -> None:
    model = shake(lora.attach(load(kind), adapter()))
    adapted = states(model)
    with pytest.raises(ValueError, match="has an adapter: merge it"):
        released_tensors(model)
    assert lora.merge(model) is model and lora.matched(model) == {}
    same(states(model), adapted)
    with pytest.raises(ValueError, match="no adapter"), lora.reference(model):
        pass
    save_model(model, load_model(str(folders[kind]))[1], tmp_path)
    again = load_model(str(tmp_path), dtype=torch.float64)[0]
    same(states(again), states(model))


def test_gradients_of_recomputed_activations(load: Load) -> None:
    """Frozen embeddings: the input of the first layer needs no gradient, its adapter gets one all the same."""
    model = lora.attach(load("llada"), adapter())
    shake(model)
    ids, positions = torch.arange(6)[None], torch.arange(6)[None]
    found = []
    for on in (False, True):
        model.checkpoint_gradients(on=on)
        model.zero_grad()
        model.hidden(ids, positions_nl=positions, attend_nqk=None)[..., 3].sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == 28 and all(g.abs().max() > 0 for g in found[0])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=0, atol=1e-10)


# on disk


@pytest.mark.parametrize("targets", ["default", "d1", ["attn_out", "up_proj"]])
def test_stored_and_loaded(targets: Any, stored: Any, load: Load) -> None:
    model, folder = stored("llada", targets=targets)
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert all(n.startswith("base_model.model.model.transformer.blocks.") for n in names)
    assert ("base_model.model.model.transformer.blocks.1.ff_out.lora_B.weight" in names) is (targets == "default")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 6.0, "./base")
    again = lora.load(load("llada", torch.float32), str(folder))
    same(states(again), states(model), 1e-5)
    assert not any(p.requires_grad for p in again.parameters())
    more = lora.load(load("llada", torch.float32), str(folder), trainable=True, base="elsewhere")
    assert sum(p.requires_grad for p in more.parameters()) == len(names)
    lora.save(more, folder.parent / "again")
    old, new = load_file(folder / lora.WEIGHTS), load_file(folder.parent / "again" / lora.WEIGHTS)
    assert old.keys() == new.keys() and all(torch.equal(old[n], new[n]) for n in old)
    told = json.loads((folder.parent / "again/adapter_config.json").read_text())
    assert told == config | {"base_model_name_or_path": "elsewhere"}


class Released(nn.Module):
    """Linear layers under the names of LLaDA's own code."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            if weight.dim() == 2:
                self._place(name.removesuffix(".weight").split("."), weight)

    def _place(self, path: list[str], weight: Tensor) -> None:
        where: nn.Module = self
        for step in path[:-1]:
            if not hasattr(where, step):
                where.add_module(step, nn.Module())
            where = getattr(where, step)
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight
        where.add_module(path[-1], layer)

    def forward(self) -> None: ...


@pytest.mark.parametrize("targets", ["default", "d1", ["ff_out", "attn_out"]])
def test_peft_finds_the_same_layers_in_the_released_module(targets: Any, stored: Any, load: Load) -> None:
    model, folder = stored("llada", targets=targets)
    weights = released_tensors(load("llada", torch.float32))
    wrapped = PeftModel.from_pretrained(Released(weights), str(folder))
    merged = dict(wrapped.merge_and_unload().named_parameters())
    ours = released_tensors(lora.merge(model))
    for name, value in merged.items():
        torch.testing.assert_close(value, ours[name], rtol=0, atol=1e-6)
    assert torch.equal(merged["model.transformer.ff_out.weight"], weights["model.transformer.ff_out.weight"])


def test_an_adapter_that_peft_made_on_transformers_own_class(load: Load, tmp_path: Path) -> None:
    model = load("sdar", torch.float32)
    shape = model.shape
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        tie_word_embeddings=False,
        rms_norm_eps=shape.eps,
    )
    other = Qwen3ForCausalLM(config)
    other.load_state_dict(released_tensors(model))
    options = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    wrapped = get_peft_model(other, options)
    wrapped.save_pretrained(tmp_path)
    lora.load(model, str(tmp_path))
    assert lora.matched(model) == {"q_proj": 2, "down_proj": 2}
    ours = released_tensors(lora.merge(model))
    for name, value in wrapped.merge_and_unload().named_parameters():
        torch.testing.assert_close(value, ours[name], rtol=0, atol=1e-6)


def test_a_stored_adapter_keeps_its_values(stored: Any) -> None:
    model, folder = stored("llada", targets="d1")
    options = Model(path=str(folder), adapter=Adapter(kind="lora"))
    lora.take_stored_values(model, options)
    assert (options.adapter.rank, options.adapter.alpha) == (3, 6)
    assert options.adapter.targets == lora.targets(model, "d1")
    spelt = adapter(targets=["q_proj", "k_proj", "v_proj", "up_proj"])
    lora.take_stored_values(model, Model(path=str(folder), adapter=spelt))
    with pytest.raises(UserError, match="rank 8 is asked for, 3 is stored"):
        lora.take_stored_values(model, Model(path=str(folder), adapter=adapter(rank=8)))
    with pytest.raises(UserError, match="targets default is asked for, 8 other layers are stored"):
        lora.take_stored_values(model, Model(path=str(folder), adapter=adapter(targets="default")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora True: only plain LoRA is taken"),
        ({"peft_type": "IA3"}, "peft_type 'IA3': only plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save .*only plain LoRA"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern .*only plain LoRA"),
        ({"r": 4}, r"lora_A is \[3, 32\], expected \[4, 32\]"),
        ({"lora_alpha": None}, "lacks r or lora_alpha"),
    ],
)
def test_other_adapters_are_refused(changes: dict[str, Any], message: str, stored: Any, load: Load) -> None:
    _, folder = stored("llada")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=message) as caught:
        lora.load(load("llada"), str(folder))
    assert "\n" not in str(caught.value)


def test_damaged_adapters_are_refused(stored: Any, load: Load, folders: dict[str, Path], tmp_path: Path) -> None:
    _, folder = stored("llada")
    with pytest.raises(UserError, match="is an adapter of another model: .*lora_A.weight has no place in a sdar"):
        lora.load(load("sdar"), str(folder))
    other = tiny.write_tiny(tmp_path / "wide", "llada", width=64, inner=64, layers=3)
    with pytest.raises(UserError, match="is an adapter of another model: .* expected"):
        lora.load(load_model(str(other))[0], str(folder))
    with pytest.raises(UserError, match="has no adapter_config.json"):
        lora.load(load("llada"), str(folders["llada"]))
    weights = load_file(folder / lora.WEIGHTS)
    save_file({n: t for n, t in weights.items() if not n.endswith("0.q_proj.lora_B.weight")}, folder / lora.WEIGHTS)
    with pytest.raises(UserError, match="lacks the other factor of model.layers.0.self_attn.q_proj.lora_A"):
        lora.load(load("llada"), str(folder))
    save_file({"base_model.model.lm_head.lora_A.weight": torch.ones(3, 32)}, folder / lora.WEIGHTS)
    with pytest.raises(UserError, match="lm_head.lora_A.weight has no place"):
        lora.load(load("llada"), str(folder))
    (folder / lora.WEIGHTS).unlink()
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="pickle checkpoint"):
        lora.load(load("llada"), str(folder))


def test_the_base_of_an_adapter(stored: Any, folders: dict[str, Path]) -> None:
    _, folder = stored("llada")
    assert lora.is_adapter(str(folder)) and not lora.is_adapter(str(folders["llada"]))
    with pytest.raises(UserError, match="no folder './base'; say where its base model is now"):
        lora.base_of(str(folder))
    assert lora.base_of(str(folder), str(folders["llada"])) == str(folders["llada"])
    assert lora.base_of(str(folders["llada"])) == str(folders["llada"])
