"""Loading by the family's entry: fresh and stored adapters of real pipelines, one training step, plain diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from image_gen.flow.config import Inputs, Model, Sampling
from image_gen.flow.family import load
from image_gen.flow.policy import FlowPolicy
from image_gen.pipelines import tiny
from mmrl import config_io
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.run import train
from mmrl.training.stored import evaluate_run, model_folder

RECORD = Record("r", "image", "a red cube")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("StableDiffusion3Pipeline", tmp_path_factory.mktemp("base") / "sd3")


def write(kind: str, folder: Path) -> Path:
    tiny.write(kind, folder)
    return folder


def policy_of(path: Path, **model: Any) -> FlowPolicy:
    return load(
        Model.model_validate({"path": str(path), "adapter": {"rank": 2, "alpha": 4}} | model),
        Sampling(steps=3, eval_steps=3, guidance=2.0),
        Inputs(height=32, width=32),
        device="cpu",
    )


def settings(path: Path, out: Path, **sections: Any) -> Any:
    tree: dict[str, Any] = {
        "family": "flow",
        "recipe": "flow-grpo",
        "out": str(out),
        "threads": 1,
        "model": {"path": str(path), "adapter": {"rank": 2, "alpha": 4}},
        "sampling": {"steps": 3, "eval_steps": 3, "guidance": 2.0},
        "inputs": {"height": 32, "width": 32, "eval_images": 2},
        "rewards": {"components": [{"name": "brightness"}]},
        "eval": {"judges": [{"name": "redness"}], "samples": 1},
        "train": {"steps": 1, "prompts": 2, "group": 2},
        "optimiser": {"lr": 1e-2},
        "log": {"tensorboard": False},
    }
    prompts = out.parent / "prompts.txt"
    prompts.write_text("a red cube\na green ball\n")
    tree["data"] = {"train": str(prompts), "eval": str(prompts)}
    for key, value in sections.items():
        tree[key] = {**tree.get(key, {}), **value}
    return config_io.build(tree, folder=out.parent)


def plain_picture(path: Path, lora: Path | None) -> torch.Tensor:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(path)
    if lora is not None:
        pipe.load_lora_weights(lora)
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"num_inference_steps": 3, "height": 32, "width": 32, "output_type": "pt"}
    if type(pipe).__name__ != "QwenImagePipeline":
        options["guidance_scale"] = 2.0
    if type(pipe).__name__ == "SanaPipeline":
        options["use_resolution_binning"] = False
    picture: torch.Tensor = pipe("a red cube", generator=torch.Generator().manual_seed(3), **options).images
    return picture


@pytest.mark.parametrize("kind", sorted(tiny.TINY))
def test_one_training_step_then_a_lora_that_plain_diffusers_takes(kind: str, tmp_path: Path) -> None:
    path = write(kind, tmp_path / "base")
    run = train(settings(path, tmp_path / "run"), progress=False)
    stored = model_folder(run)
    assert json.loads((stored / "mmrl.json").read_text()) == {"family": "flow", "base": str(path)}
    before, after = plain_picture(path, None), plain_picture(path, stored)
    assert torch.equal(before, plain_picture(path, None)) and float((after - before).abs().max()) > 1e-6
    summary = json.loads((run / "summary.json").read_text())
    assert evaluate_run(run)["reward"] == pytest.approx(summary["after"]["reward"], abs=1e-6)


def test_a_stored_lora_goes_on_as_it_is_and_names_its_base(base: Path, tmp_path: Path) -> None:
    first = policy_of(base)
    with torch.no_grad():
        for p in first.parameters_of("steps"):
            p += 0.1
    first.save(tmp_path / "lora")
    again = policy_of(tmp_path / "lora", adapter={})
    assert (again.options.adapter.rank, again.options.adapter.alpha) == (2, 4)
    for a, b in zip(first.parameters_of("steps"), again.parameters_of("steps"), strict=True):
        torch.testing.assert_close(a, b)
    again.save(tmp_path / "further")
    assert json.loads((tmp_path / "further" / "mmrl.json").read_text())["base"] == str(base)
    with pytest.raises(UserError, match="rank 8 is asked for, 2 is stored"):
        policy_of(tmp_path / "lora", adapter={"rank": 8})
    merged = policy_of(tmp_path / "lora", adapter={"kind": "none"})
    x_n = torch.randn(1, *merged.model.latent_shape(32, 32))
    with torch.no_grad():
        one, other = (p._velocity(["a red cube"], greedy=False)(x_n, 0.7) for p in (again, merged))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_reference_is_the_base_with_the_adapter_off(base: Path) -> None:
    policy = policy_of(base)
    x_n = torch.randn(1, *policy.model.latent_shape(32, 32))
    velocity = policy._velocity(["a red cube"], greedy=False)
    with torch.no_grad():
        start = velocity(x_n, 0.7)
        for p in policy.parameters_of("steps"):
            p += 0.1
        moved = velocity(x_n, 0.7)
        with policy.reference():
            torch.testing.assert_close(velocity(x_n, 0.7), start)
    assert float((moved - start).abs().max()) > 1e-4
    names = {n for n, p in policy.model.transformer.named_parameters() if p.requires_grad}
    assert names and all("lora" in n for n in names)


def test_all_weights_train_without_an_adapter(base: Path, tmp_path: Path) -> None:
    run = train(settings(base, tmp_path / "run", model={"adapter": {"kind": "none"}}), progress=False)
    stored = model_folder(run)
    assert float((plain_picture(stored, None) - plain_picture(base, None)).abs().max()) > 1e-6


def test_what_is_wrong_is_said_in_one_line(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="inputs.height|size|33"):
        load(Model(path=str(base)), Sampling(), Inputs(height=33, width=32), device="cpu")
    (tmp_path / "lora").mkdir()
    first = policy_of(base)
    first.save(tmp_path / "lora")
    (tmp_path / "lora" / "mmrl.json").unlink()
    with pytest.raises(UserError, match="does not say of which model; name it in model.base"):
        policy_of(tmp_path / "lora")
    other = write("FluxPipeline", tmp_path / "flux")
    with pytest.raises(UserError):
        policy_of(tmp_path / "lora", base=str(other))
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(UserError, match="no prompts"):
        made = settings(base, tmp_path / "run")
        (tmp_path / "prompts.txt").write_text("# nothing\n")
        train(made, progress=False)
