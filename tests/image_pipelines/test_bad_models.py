"""Folders, sizes and adapters that cannot be used: one line that says what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_cases import CASES, CPU, load

from image_gen.pipelines import lora, tiny
from image_gen.pipelines.loading import load_image_model
from mmrl.errors import UserError


def refused(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load_image_model(str(path), dtype=torch.float32, device=CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def sana(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["sana"], tmp_path / "sana"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_no_such_folder(tmp_path: Path) -> None:
    assert "no folder '/no/such/model'; give a folder written by save_pretrained" in refused("/no/such/model")
    assert "no folder 'nowhere'" in refused("nowhere")
    assert "unknown embedded model 'embedded:flo'; did you mean 'embedded:flow'?" in refused("embedded:flo")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(tmp_path / "file")


def test_no_pipeline(tmp_path: Path, sana: Path) -> None:
    assert "has no model_index.json, so it is no diffusers pipeline" in refused(tmp_path)
    assert "this is a single model, give the folder above it" in refused(sana / "transformer")


def test_another_pipeline(sana: Path) -> None:
    edit(sana / "model_index.json", _class_name="StableDiffusionPipeline")
    message = refused(sana)
    assert "is a StableDiffusionPipeline, which is not supported; take " in message
    for known in ("FluxPipeline", "QwenImagePipeline", "SanaPipeline", "StableDiffusion3Pipeline"):
        assert known in message


def test_broken_files(sana: Path) -> None:
    weights = sana / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "is it a whole folder written by save_pretrained?" in refused(sana)
    weights.unlink()
    assert "is it a whole folder written by save_pretrained?" in refused(sana)
    weights.write_bytes(whole)
    (sana / "model_index.json").write_text("{")
    assert "model_index.json" in refused(sana)


def test_weights_that_do_not_fit(sana: Path) -> None:
    file = sana / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    first = weights.pop("proj_out.bias")
    save_file(weights, file, metadata={"format": "pt"})
    assert "it lacks 1 tensors, first proj_out.bias" in refused(sana)
    save_file(weights | {"proj_out.bias": first, "extra": first.clone()}, file, metadata={"format": "pt"})
    assert "has surplus 1 tensors, first extra" in refused(sana)


def test_code_and_foreign_components_are_refused(sana: Path) -> None:
    edit(sana / "model_index.json", transformer=["my_module", "Evil"])
    assert "unknown component transformer" in refused(sana)


def test_a_scheduler_that_is_not_of_flow_matching(folders: dict[str, Path], sana: Path) -> None:
    edit(sana / "scheduler" / "scheduler_config.json", use_flow_sigmas=False)
    assert "must have use_flow_sigmas true" in refused(sana)
    edit(sana / "scheduler" / "scheduler_config.json", use_flow_sigmas=True, use_karras_sigmas=True)
    assert "none of the other sigma tables" in refused(sana)
    index = json.loads((folders["sd3"] / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    edit(sana / "model_index.json", scheduler=["diffusers", "FlowMatchHeunDiscreteScheduler"])
    assert "is not a flow-matching one; use DPMSolverMultistepScheduler or FlowMatchEuler" in refused(sana)


def test_sana_takes_the_euler_scheduler_too(sana: Path) -> None:
    (sana / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    )
    edit(sana / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    model = load(sana)
    assert model.sigmas(4, 32, 32)[0] == 1
    x_n = torch.zeros(2, 4, 8, 8)
    assert model._timestep(0.1234567, x_n).tolist() == pytest.approx([123.4567] * 2)


@pytest.mark.parametrize(
    ("name", "height", "width", "message"),
    [
        ("sd3", 33, 32, "takes a height in steps of 4, at most 96, got 33; nearest: 32 or 36"),
        ("sd3", 32, 200, "takes a width in steps of 4, at most 96, got 200; nearest: 96"),
        ("flux", 32, 30, "takes a width in steps of 4, got 30; nearest: 28 or 32"),
        ("sana", 48, 32, "takes a height in steps of 32, got 48; nearest: 32 or 64"),
        ("qwen", 0, 32, "takes a height in steps of 4, got 0; nearest: 4"),
    ],
)
def test_wrong_sizes(name: str, height: int, width: int, message: str, folders: dict[str, Path]) -> None:
    model = load(folders[name])
    model.check_size(32, 64)
    for ask in (model.check_size, model.latent_shape, lambda h, w: model.sigmas(4, h, w)):
        with pytest.raises(UserError) as caught:
            ask(height, width)
        assert f"picture size {height}x{width}: {CASES[name].kind}" in str(caught.value)
        assert str(caught.value).endswith(message)
    with pytest.raises(UserError, match="steps must be at least 1"):
        model.sigmas(0, 32, 32)


def stored(folder: Path, path: Path) -> Path:
    model = load(folder)
    lora.attach_lora(model, rank=2, alpha=4)
    model.save_lora(path)
    return path


def load_refused(model: Any, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        model.load_lora(path)
    assert "\n" not in str(caught.value)
    assert not lora.attached(model.transformer)
    return str(caught.value)


def test_a_lora_of_another_model(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = stored(folders["sd3"], tmp_path / "sd3")
    for name in ("sana", "qwen", "flux"):
        message = load_refused(load(folders[name]), adapter)
        kind = type(load(folders[name]).transformer).__name__
        assert f"a LoRA of another model: it was made for a SD3Transformer2DModel, this is a {kind}" in message
    wide = tiny.write("StableDiffusion3Pipeline", tmp_path / "wide", heads=4)
    message = load_refused(load(wide), adapter)
    assert "a LoRA of another model: transformer_blocks.0.attn." in message and "is [64, 64] in this SD3" in message


def test_a_lora_of_another_model_that_does_not_say_so(folders: dict[str, Path], tmp_path: Path) -> None:
    file = stored(folders["sd3"], tmp_path) / lora.FILE
    save_file(load_file(file), file)
    message = load_refused(load(folders["flux"]), tmp_path)
    assert "a LoRA of another model: this FluxTransformer2DModel has no linear layer transformer_blocks.1" in message
    save_file(load_file(file), file, metadata={"lora_adapter_metadata": "{"})
    assert "its metadata are broken" in load_refused(load(folders["sd3"]), tmp_path)


def test_a_lora_that_is_none(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load(folders["sana"])
    assert "holds no pytorch_lora_weights.safetensors" in load_refused(model, tmp_path)
    file = tmp_path / lora.FILE
    file.write_bytes(b"not at all")
    assert "not a whole safetensors file" in load_refused(model, tmp_path)
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, file)
    assert "not LoRA of a transformer in diffusers' format" in load_refused(model, tmp_path)
    save_file({}, file)
    assert "the adapter is empty" in load_refused(model, tmp_path)
