"""Bad checkpoints and options give one clear line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrl.errors import UserError
from mmrl.vlm import tiny


@pytest.fixture
def folder(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(checkpoints["qwen3_vl"], tmp_path / "model"))


def refused(make: Callable[..., Any], message: str, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


def test_no_folder(make: Callable[..., Any]) -> None:
    refused(make, "no folder './nowhere'", path="./nowhere")
    refused(make, "unknown embedded model 'embedded:vml'", path="embedded:vml")


def test_a_file(make: Callable[..., Any], folder: Path) -> None:
    refused(make, "is a file", path=folder / "config.json")


def test_no_configuration(make: Callable[..., Any], folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(make, "has no config.json", path=folder)


def test_broken_configuration(make: Callable[..., Any], folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen3_vl",')
    refused(make, "cannot load the configuration", path=folder)


def test_pickle(make: Callable[..., Any], folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(make, r"holds no \*.safetensors", path=folder)
    torch.save({}, folder / "pytorch_model.bin")
    refused(make, r"holds a pickle checkpoint \(pytorch_model.bin\).*convert it to safetensors", path=folder)


def test_truncated_weights(make: Callable[..., Any], folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    refused(make, "cannot load", path=folder)


def test_another_model_class(make: Callable[..., Any], folder: Path) -> None:
    from transformers import Qwen3Config

    Qwen3Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(folder)
    refused(make, "is a 'qwen3' model; family vlm takes qwen2_vl, qwen2_5_vl, qwen3_vl", path=folder)


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_weights_that_do_not_fit(change: str, make: Callable[..., Any], folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    if change == "missing":
        del weights[name]
    elif change == "surplus":
        weights["model.language_model.layers.9.mlp.up_proj.weight"] = weights[name].clone()
    else:
        weights[name] = weights[name][:3].clone()
    save_file(weights, file, metadata={"format": "pt"})
    refused(make, "model.path: .*(up_proj|size|shape|ismatch)", path=folder)


def test_weights_of_another_size(make: Callable[..., Any], checkpoints: dict[str, Path], folder: Path) -> None:
    shutil.copy(checkpoints["qwen2_vl"] / "model.safetensors", folder / "model.safetensors")
    refused(make, "model.path", path=folder)


def test_no_processor(make: Callable[..., Any], folder: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    refused(make, "processor", path=folder)


def test_sliding_window(make: Callable[..., Any], checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints["qwen2_vl"], tmp_path / "sliding"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    refused(make, "sliding-window attention", path=folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_prefix": "cache", "gradient_checkpointing": True}, "cache cannot be used with"),
        ({"shared_prefix": "cache", "allow_dropout": True}, "allow_dropout breaks"),
        ({"shared_prefix": "packed", "attention": "flash_attention_2"}, "packed needs a block mask"),
        ({"adapter": {"kind": "lora", "dropout": 0.1}}, "dropout is off in every pass"),
        ({"adapter": {"kind": "lora"}, "freeze": ["vision"]}, "LoRA trains the adapter only"),
        ({"adapter": {"kind": "lora", "targets": ["q_porj"]}}, "'q_porj'; did you mean 'q_proj'"),
        ({"freeze": ["vision", "projector", "language", "embeddings"]}, "nothing is left to train"),
        ({"inputs": {"min_pixels": 100, "max_pixels": 10}}, "min_pixels 100 is more than max_pixels 10"),
        ({"sampling": {"stop": ["two"]}}, "sampling.stop: 'two' is not one token"),
        ({"sampling": {"suppress": [5000]}}, "sampling.suppress: 5000 is not one token"),
        ({"sampling": {"suppress": ["<|im_end|>"]}}, "is an end token"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, make: Callable[..., Any]) -> None:
    refused(make, message, **options)


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({}, "cache"),
        ({"gradient_checkpointing": True}, "packed"),
        ({"allow_dropout": True}, "off"),
        ({"shared_prefix": "off"}, "off"),
    ],
)
def test_automatic_form(options: dict[str, Any], form: str, make: Callable[..., Any]) -> None:
    assert make(**options).form == form


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_bfloat16_checkpoints_train_in_float32(
    kind: str, make: Callable[..., Any], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    stored = make(kind)
    stored.model.to(torch.bfloat16)
    stored.save(tmp_path / "half")
    again = make(kind, path=tmp_path / "half")
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}


def test_dropout_is_zero_everywhere(make: Callable[..., Any], checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints["qwen2_vl"], tmp_path / "dropout"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))

    def rates(policy: Any) -> set[float]:
        attention = {float(m.attention_dropout) for m in policy.model.modules() if hasattr(m, "attention_dropout")}
        return attention | {m.p for m in policy.model.modules() if isinstance(m, torch.nn.Dropout)}

    assert rates(make(path=folder)) == {0.0}
    assert 0.5 in rates(make(path=folder, allow_dropout=True))


def test_freezing_parts(make: Callable[..., Any]) -> None:
    policy = make("qwen3_vl", freeze=["vision", "embeddings"])
    trained = {n for n, p in policy.model.named_parameters() if p.requires_grad}
    assert any("merger" in n for n in trained), "the projector is a part of its own"
    assert not any("visual.blocks" in n or "embed_tokens" in n or "lm_head" in n for n in trained)
    assert any("language_model.layers" in n for n in trained)
    policy = make("qwen3_vl", freeze=["language", "projector"])
    trained = {n for n, p in policy.model.named_parameters() if p.requires_grad}
    assert any("visual.blocks" in n for n in trained) and any("embed_tokens" in n for n in trained)
    assert not any("merger" in n or "language_model.layers" in n for n in trained)


def test_picture_limits_reach_the_processor(make: Callable[..., Any], records: list[Any]) -> None:
    small = make("qwen3_vl", inputs={"max_pixels": 64}).encoder(records[2])
    large = make("qwen3_vl", inputs={"min_pixels": 4096}).encoder(records[2])
    assert small.media["image_grid_thw"].prod(1).max() * 16 <= 64
    assert large.media["image_grid_thw"].prod(1).min() * 16 >= 4096
