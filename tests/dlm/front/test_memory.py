"""Counts against the models themselves; bytes by literal numbers and by what torch really keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm import memory, shapes
from dlm.config import Adapter
from dlm.forward import columns
from dlm.models import lora
from dlm.models.base import Traits
from dlm.models.layers import Shape as Sizes
from dlm.models.layers import Transformer
from dlm.models.loading import load_model
from dlm.models.tiny import KINDS, write_tiny
from dlm.rows import Row
from mmrl import yaml_io
from mmrl.config_io import recipe_of, resolve
from mmrl.errors import UserError
from mmrl.paths import configs_dir

TABLE = dict(yaml_io.read(configs_dir() / "models" / "dlm.yaml")["models"])
#: Published totals, in units of 1e9, to the digits that the model pages give; SDAR-1.7B by the bytes of its file.
PUBLISHED = {
    "GSAI-ML/LLaDA-8B-Instruct": 8.02,
    "JetLM/SDAR-1.7B-Chat": 2.03,
    "Dream-org/Dream-v0-Instruct-7B": 7.62,
    "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1": 0.60,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_agree_with_the_published_ones(name: str) -> None:
    shape = shapes.shape_of(name)
    assert shape is not None and round(shape.parameters / 1e9, 2) == PUBLISHED[name]


def test_every_model_of_the_table_has_a_shape() -> None:
    found = {name: shapes.shape_of(name) for name in TABLE}
    assert all(shape is not None and shape.source for shape in found.values())
    assert {n for n, s in found.items() if s and s.attention == "block"} == {n for n in found if "SDAR" in n}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_agree_with_the_model_that_is_loaded(kind: Any, tied: bool, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / kind, kind, layers=3, width=48, inner=80, heads=6, head=8, tied=tied)
    shape = shapes.shape_of(str(folder))
    model, _ = load_model(str(folder))
    assert shape is not None
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert (shape.attention, shape.block) == (model.traits.attention, model.traits.block)


@pytest.mark.parametrize("targets", ["default", "d1", ["v_proj", "mlp.up_proj"], ["model.layers.1.self_attn.o_proj"]])
@pytest.mark.parametrize("kind", ["llada", "sdar"])
def test_adapters_agree_with_peft(kind: Any, targets: Any, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / kind, kind, layers=2)
    model, _ = load_model(str(folder))
    lora.attach(model, Adapter(kind="lora", rank=3, alpha=3, targets=targets))
    shape = shapes.shape_of(str(folder))
    assert shape is not None
    assert shape.adapter(3, targets) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_d1_adapts_four_layers_of_llada_by_their_released_names_too() -> None:
    shape = shapes.shape_of("GSAI-ML/LLaDA-8B-Instruct")
    assert shape is not None
    assert shape.adapter(128, "d1") == 32 * 128 * (3 * 8192 + 4096 + 12288) == 167_772_160
    assert shape.adapter(1, ["ff_out"]) == shape.adapter(1, ["down_proj"]) == 32 * (12288 + 4096)


def bytes_kept(sizes: dict[str, int], *, adapter: bool, narrow: bool) -> float:
    """Of one block and column, by the difference of three and two blocks, the mask's bias left out."""
    wide, found = 128, []
    for layers in (2, 3):
        shape = Sizes(vocabulary=16, layers=layers, theta=1e4, eps=1e-6, qk_norm=True, **sizes)
        model = Transformer(shape, Traits("sdar", 3, (1,), 0, False, "block", 4, 4096, ()))
        if adapter:
            model.to(torch.bfloat16 if narrow else torch.float32)
            lora.attach(model, Adapter(kind="lora", rank=1, alpha=1))
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen: dict[int, torch.Tensor] = {}

        def keep(t: torch.Tensor, seen: dict[int, torch.Tensor] = seen, weights: set[int] = weights) -> torch.Tensor:
            if t.untyped_storage().data_ptr() not in weights and wide in t.shape:  # no copies of weights
                seen[t.untyped_storage().data_ptr()] = t
            return t

        ids, positions = torch.zeros(1, wide, dtype=torch.long), torch.arange(wide)[None]
        attend = torch.ones(1, wide, wide, dtype=torch.bool)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
            torch.autocast("cpu", torch.bfloat16, enabled=narrow),
        ):
            model.hidden(ids, positions_nl=positions, attend_nqk=attend)
        found.append(sum(t.untyped_storage().nbytes() for t in seen.values()))
    return (found[1] - found[0]) / wide - wide * (2 if narrow else 4)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_what_blocks_keep_is_what_torch_keeps(adapter: bool, narrow: bool) -> None:
    for sizes in (
        {"width": 80, "inner": 96, "heads": 4, "kv_heads": 2, "head": 16},
        {"width": 48, "inner": 208, "heads": 6, "kv_heads": 2, "head": 16},
    ):
        costs = memory.KEPT[adapter, narrow]
        q, kv = sizes["heads"] * sizes["head"], sizes["kv_heads"] * sizes["head"]
        counted = costs.hidden * sizes["width"] + costs.inner * sizes["inner"] + costs.queries * q
        counted += costs.normed * (q + kv)
        assert bytes_kept(sizes, adapter=adapter, narrow=narrow) == pytest.approx(counted, rel=0.03)


def estimate(name: str, *overrides: str, ranks: int = 1) -> memory.Estimate:
    config = resolve(f"dlm/{name}", overrides)
    shape = shapes.shape_of(config.model.path, block=config.model.block)
    assert shape is not None
    return memory.estimate(config, recipe_of(config), shape, ranks=ranks)


def test_an_adapter_rests_on_bf16_and_needs_no_copy_as_reference() -> None:
    e = estimate("llada_8b_gsm8k_diffu_grpo")  # with KL
    assert e.base == 2 * 8_015_581_184 and e.reference == 0 and e.casts == 0
    assert e.gradients == e.adapter == 4 * e.trainable and e.optimiser == 8 * e.trainable
    assert (e.row, e.columns) == (456, 1368)
    whole = estimate("llada_8b_gsm8k_diffu_grpo", "model.adapter.kind=none")
    assert whole.base + whole.gradients + whole.optimiser + whole.reference == 20 * 8_015_581_184
    assert whole.casts == 2 * 32 * (4 * 4096**2 + 3 * 4096 * 12288)
    assert estimate("llada_8b_gsm8k_gdpo", "model.adapter.kind=none").reference == 0


def test_pairs_show_a_completion_twice_and_a_piece_is_at_least_a_row() -> None:
    e = estimate("sdar_8b_lightningrl_gsm8k", ranks=8)
    assert e.row == 512 + 2 * (1024 + 32) and e.columns == 10496 == 4 * e.row
    assert estimate("sdar_8b_lightningrl_gsm8k", "model.piece_tokens=1", ranks=8).columns == e.row
    assert estimate("llada_8b_gsm8k_gdpo", "model.piece_tokens=1000000").columns == 24 * 456


@pytest.mark.parametrize("kind", ["llada", "sdar"])
def test_columns_of_a_row_are_those_of_the_forward(kind: Any, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / kind, kind)
    config = resolve(
        "dlm/sft_llada", [f"model.path={folder}", "inputs.max_prompt_tokens=9", "sampling.max_new_tokens=20"]
    )
    shape = shapes.shape_of(str(folder))
    assert shape is not None
    row = Row(torch.arange(9), torch.arange(20), torch.full((20,), -1), 20, demonstration=True)
    assert memory.row_columns(config, shape) == columns([row], shape.block)


def test_the_cache_holds_every_row_at_its_full_length() -> None:
    e = estimate("sdar_8b_lightningrl_gsm8k", ranks=8)
    assert e.cache == 2 * 36 * 8 * 128 * 128 * 1536 * 2  # keys and values, blocks, heads, rows, columns, bf16
    assert estimate("sdar_8b_lightningrl_gsm8k", "sampling.cache='off'", ranks=8).cache == 0


def test_checkpointing_and_smaller_pieces_save_memory() -> None:
    e = estimate("llada_8b_gsm8k_gdpo")
    assert estimate("llada_8b_gsm8k_gdpo", "model.gradient_checkpointing=true").activations < e.activations / 5
    assert estimate("llada_8b_gsm8k_gdpo", "model.piece_tokens=456").activations == pytest.approx(e.activations / 3)
    assert estimate("llada_8b_gsm8k_gdpo", "model.head_chunk=128").head == e.head / 8
    assert estimate("llada_8b_gsm8k_gdpo", "device=cpu").base == 2 * e.base


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    config = resolve("dlm/llada_8b_gsm8k_gdpo", ["model.path=someone/else"])
    (line,) = memory.memory_lines(config, recipe_of(config))
    assert line.startswith("size unknown: someone/else")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8}))
    assert shapes.shape_of(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{\n  oops\n}")
    with pytest.raises(UserError, match="line 2"):
        shapes.shape_of(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        shapes.shape_of(str(tmp_path))


def test_a_stored_adapter_is_as_large_as_its_base(tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", "llada")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    assert shapes.shape_of(str(tmp_path / "adapter")) == shapes.shape_of(str(base))
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert shapes.shape_of(str(tmp_path / "adapter")) is None
    assert shapes.shape_of(str(tmp_path / "adapter"), str(base)) == shapes.shape_of(str(base))
