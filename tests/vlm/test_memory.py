"""The size estimate: shapes against transformers' own classes, parts and pieces by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from mmrl import yaml_io
from mmrl.cli.plan import show
from mmrl.config_io import build, recipe_of, resolve
from mmrl.core import registry
from mmrl.core.channels import CHANNELS
from mmrl.core.reducers import REDUCERS
from mmrl.errors import UserError
from mmrl.paths import configs_dir
from mmrl.vlm import memory
from mmrl.vlm.memory import Shape

#: Published totals, in units of 1e9, to the digits that the model pages give.
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": 2.21,
    "Qwen/Qwen2-VL-7B-Instruct": 8.29,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3.75,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8.29,
    "Qwen/Qwen3-VL-2B-Instruct": 2.13,
    "Qwen/Qwen3-VL-4B-Instruct": 4.44,
    "Qwen/Qwen3-VL-8B-Instruct": 8.77,
}


def table() -> dict[str, object]:
    return dict(yaml_io.read(configs_dir() / "models" / "qwen_vl.yaml")["models"])


@pytest.mark.parametrize("name", sorted(table()))
def test_counts_agree_with_the_published_ones(name: str) -> None:
    shape = memory.shape_of(name)
    assert shape is not None
    assert shape.parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.004)


def small(kind: str) -> transformers.PretrainedConfig:
    text = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 176,
        "vocab_size": 500,
        "tie_word_embeddings": False,
    }
    if kind == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 4}
        return transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 80}
    if kind == "qwen2_5_vl":
        return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    vision["deepstack_visual_indexes"] = [0, 1]
    return transformers.Qwen3VLConfig(
        text_config={**text, "head_dim": 16}, vision_config=vision, tie_word_embeddings=False
    )


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_counts_agree_with_a_model_built_from_the_same_file(kind: str, tmp_path: Path) -> None:
    config = small(kind)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1 and p.shape[0] != 2304)  # no position table
    shape = memory.shape_of(str(tmp_path))
    assert shape is not None
    assert shape.parameters == weights


def estimate(*overrides: str) -> memory.Estimate:
    config = resolve("visual_rft/qwen2_vl_2b_full_8gpu", overrides)
    shape = memory.shape_of(config.model.path)
    assert isinstance(shape, Shape)
    return memory.estimate(config, recipe_of(config), shape, ranks=8)


def test_full_training_costs_sixteen_bytes_a_parameter_and_four_for_the_reference() -> None:
    full = estimate()
    assert full.trainable == full.parameters
    assert full.weights + full.gradients + full.optimiser == 16 * full.parameters
    assert full.reference == 4 * full.parameters
    assert estimate("recipe_options.penalties.kl.coef=0").reference == 0
    assert estimate("optimiser.kind=adamw8bit").optimiser == full.optimiser / 4


def test_an_adapter_needs_no_reference_copy_and_rests_in_bf16() -> None:
    adapter = estimate("model.adapter.kind=lora", "model.adapter.rank=8")
    # rank x layers x (in + out of q, o; k, v; gate, up, down): 12 heads of 128, 2 key-value heads
    per_layer = 2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960)
    assert adapter.trainable == 8 * 28 * per_layer
    assert adapter.reference == 0
    assert adapter.weights == 4 * adapter.trainable + 2 * adapter.parameters


def test_freezing_and_checkpointing_save_memory() -> None:
    full = estimate()
    assert estimate("model.freeze=[vision]").trainable < full.trainable
    assert estimate("model.gradient_checkpointing=true").activations < full.activations / 2
    assert estimate("model.piece_tokens=1024").activations < full.activations
    assert estimate("train.group=4").cache == pytest.approx(full.cache / 2)


GROUPS = ["train.group=4", "inputs.max_prompt_tokens=1000", "sampling.max_new_tokens=100", "model.piece_tokens=600"]


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        (["recipe=grpo"], 600),  # no row is compared with another: the budget alone
        (["recipe=tw-grpo"], 4 * 1100),
        (["recipe=reg-grpo"], 4 * 1100),  # no reducer: the gate compares
        (["recipe=tw-grpo", "model.gradient_checkpointing=true"], 1000 + 4 * 100),  # packed: the prompt once
        (["recipe=tw-grpo", "model.shared_prefix=packed"], 1400),
        (["recipe=tw-grpo", "distributed.mode=fsdp2"], 1400),
        (["recipe=tw-grpo", "distributed.mode=fsdp2", "model.shared_prefix=off"], 4400),
        (["recipe=tw-grpo", "model.piece_tokens=8192"], 8192),  # room for more groups
    ],
)
def test_a_piece_holds_the_rows_that_the_recipe_compares(options: list[str], tokens: int) -> None:
    config = resolve("visual_rft/qwen2_vl_2b_full_8gpu", ["recipe_options={}", *GROUPS, *options])
    recipe, shape = recipe_of(config), memory.shape_of(config.model.path)
    assert isinstance(shape, Shape)
    found = memory.estimate(config, recipe, shape, ranks=8)
    assert found.piece.tokens == tokens
    plain = config.model_copy(
        update={"recipe": "grpo", "model": config.model.model_copy(update={"piece_tokens": tokens})}
    )
    assert found.activations == memory.estimate(plain, recipe_of(plain), shape, ranks=8).activations
    told = memory.lines(config, found, shape)
    assert any(line.startswith(f"activations of a piece of {tokens} tokens") for line in told)
    whole = f"a piece holds a whole group ({tokens} tokens at full length): the recipe compares its rows"
    assert (told[-1] == whole) == (tokens in (4400, 1400))


PLUGIN = """
from mmrl.core.reducers import reducer
from mmrl.core.registry import stage

@reducer("tops_nt", meaning="largest logit", scope="group")
def tops(logits_ncv, hidden_ncd):
    return logits_ncv.amax(-1)

@stage("weight", "by-tops")
def by_tops(*, tops_nt):
    return tops_nt

@stage("gate", "by-batch", scope="batch")
def by_batch(*, logp_nt, adv_nt):
    return -logp_nt * adv_nt
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a plug-in in the working folder, forgotten afterwards."""
    (tmp_path / "compares_rows.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_STAGES", dict(registry._STAGES))
    yield "compares_rows"
    for known, name in ((REDUCERS, "tops_nt"), (CHANNELS, "tops_nt"), (sys.modules, "compares_rows")):
        known.pop(name, None)


@pytest.mark.parametrize(
    ("stages", "whole"),
    [
        ("gate: reinforce\nweight: by-tops", "a whole group (330 tokens"),
        ("gate: by-batch", "all rows of an update (990 tokens"),
    ],
)
def test_stages_of_plug_ins_count(plugin: str, stages: str, whole: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A weight that reads what a reducer fills from whole groups, and a gate that compares all rows: in the plan."""
    Path("own.yaml").write_text(f"advantage: grpo\nreduce: token-mean\n{stages}\n")
    raw = {
        "family": "vlm",
        "recipe": "own.yaml",
        "plugins": [plugin],
        "device": "cpu",
        "model": {"path": "embedded:vlm", "piece_tokens": 64},
        "inputs": {"max_prompt_tokens": 100},
        "sampling": {"max_new_tokens": 10},
        "data": {"train": "digits:train"},
        "train": {"prompts": 6, "group": 3, "minibatches": 2},
    }
    show(build(raw, folder=Path.cwd()))
    assert capsys.readouterr().out.endswith(f"a piece holds {whole} at full length): the recipe compares its rows\n")


def test_unknown_models_are_said_to_be_unknown(tmp_path: Path) -> None:
    config = resolve("visual_rft/qwen2_vl_2b_full_8gpu", ["model.path=someone/else"])
    assert memory.describe(config, recipe_of(config))[0].startswith("size unknown: someone/else")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8}))
    assert memory.shape_of(str(tmp_path)) is None


def test_a_broken_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        memory.shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{\n  oops\n}")
    with pytest.raises(UserError, match="line 2"):
        memory.shape_of(str(tmp_path))


def test_an_adapter_has_the_shape_of_its_base(tmp_path: Path) -> None:
    base = memory.shape_of("embedded:vlm")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "embedded:vlm"}))
    assert memory.shape_of(str(adapter)) == base
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    assert memory.shape_of(str(adapter), "embedded:vlm") == base
    with pytest.raises(UserError, match="base_model_name_or_path is missing"):
        memory.shape_of(str(adapter))
