"""The size estimate against transformers' own classes of the same shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from mmrl import yaml_io
from mmrl.config_io import recipe_of, resolve
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
