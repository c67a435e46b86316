"""Vision-language policies on two ranks, whole (DDP) and in shards (FSDP2): rollouts and updates of one process, in
float64, prompts with and without pictures; checkpoints load in plain transformers and on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import launch, log, tensors
from PIL import Image

from mmrl import config_io
from mmrl.training.checkpoint import step_folder
from mmrl.training.run import train
from mmrl.vlm import family, tiny

FSDP = {"distributed": {"mode": "fsdp2"}}
LORA = {"model": {"adapter": {"kind": "lora", "rank": 4}, "shared_prefix": "packed"}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("qwen2_5_vl", {"recipe": "gspo", "train": {"epochs": 2, "minibatches": 2}}),
    "ddp lora": ("qwen3_vl", LORA),
    "fsdp2": ("qwen3_vl", {**FSDP, "model": {"shared_prefix": "packed"}, "ema": {"enabled": True}}),
    "fsdp2 minibatches": ("qwen2_5_vl", {**FSDP, "recipe": "dapo", "train": {"prompts": 3, "minibatches": 3}}),
    "fsdp2 lora": ("qwen2_5_vl", {**FSDP, **LORA}),
    "fsdp2 checkpointing": (
        "qwen3_vl",
        {**FSDP, "recipe": "cispo", "model": {"gradient_checkpointing": True}, "train": {"two_pass": "always"}},
    ),
}


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 24, 3), dtype=np.uint8))


def data(folder: Path) -> Path:
    """Every third record has no picture."""
    lines = []
    for i in range(9):
        record: dict[str, Any] = {"id": f"r{i}", "task": "detection", "prompt": "Where?" + "x" * i, "answer": []}
        if i % 3:
            picture(i).save(folder / f"{i}.png")
            record["images"] = [f"{i}.png"]
        lines.append(json.dumps(record))
    file = folder / "data.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def settings(root: Path, case: str, out: Path, **sections: Any) -> dict[str, Any]:
    kind, change = CASES[case]
    base: dict[str, Any] = {
        "family": "vlm",
        "recipe": "visual-rft",
        "out": str(out),
        "threads": 1,
        "model": {"path": str(root / kind), "autocast": "off", "piece_tokens": 64},
        "sampling": {"max_new_tokens": 5},
        "data": {"train": str(root / "data.jsonl"), "eval": str(root / "data.jsonl")},
        "plugins": ["plugin_rewards"],
        "rewards": {"components": [{"name": "spread"}]},
        "train": {"steps": 3, "prompts": 4, "group": 3},
        "optimiser": {"lr": 1e-3},
        "checkpoint": {"every": 1, "keep_last": 3},
        "eval": {"metric": "reward", "samples": 1},
        "log": {"tensorboard": False},
    }
    for key, value in [*change.items(), *sections.items()]:
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one/CASE, run-of-two/CASE: whole runs. on-one/, on-two/: a step on the other number of ranks, then resumed."""
    root = tmp_path_factory.mktemp("vlm_ranks")
    for kind in ("qwen2_5_vl", "qwen3_vl"):
        tiny.build(kind, root / kind)
    data(root)
    patch = pytest.MonkeyPatch()
    patch.setattr(family, "_dtype", lambda options, device: torch.float64)
    try:
        for case in CASES:
            train(config_io.build(settings(root, case, root / "one" / case), folder=root), progress=False)
            first = settings(root, case, root / "on-two" / case)
            first["train"]["steps"] = 1
            train(config_io.build(first, folder=root), progress=False)
        jobs = [{"config": settings(root, case, root / "run-of-two" / case), "double": True} for case in CASES]
        for case in CASES:
            jobs.append({"config": settings(root, case, root / "on-two" / case), "double": True, "resume": True})
            first = settings(root, case, root / "on-one" / case)
            first["train"]["steps"] = 1
            jobs.append({"config": first, "double": True})
        jobs.append({"config": settings(root, "fsdp2", root / "float32")})
        first = settings(root, "fsdp2", root / "other-mode", distributed={"mode": "ddp"})
        first["train"]["steps"] = 1
        jobs.append({"config": first, "double": True})
        jobs.append({"config": settings(root, "fsdp2", root / "other-mode"), "double": True, "resume": True})
        assert launch(jobs, root) == [["done"] * len(jobs)] * 2
        for case in CASES:
            again = config_io.build(settings(root, case, root / "on-one" / case), folder=root)
            train(again, resume=True, progress=False)
    finally:
        patch.undo()
    return root


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("where", ["run-of-two", "on-two", "on-one"])
def test_the_run_of_one(root: Path, case: str, where: str) -> None:
    one, other = log(root / "one" / case), log(root / where / case)
    assert len(one) == 4
    for a, b in zip(one, other, strict=True):
        for key, value in a.items():
            assert b[key] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), key
    alone, shared = tensors(root / "one" / case, 3), tensors(root / where / case, 3)
    assert alone.keys() == shared.keys()
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_run_goes_on_in_the_other_mode(root: Path) -> None:
    one, other = tensors(root / "one" / "fsdp2", 3), tensors(root / "other-mode", 3)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_float32_in_shards(root: Path) -> None:
    """The type that is trained in; its sums go over the wire in another way. One step: from there on roundings part."""
    one, two = log(root / "one" / "fsdp2")[1], log(root / "float32")[1]
    for key in ("reward", "loss", "grad_norm", "length"):
        assert two[key] == pytest.approx(one[key], rel=1e-4), key


@pytest.mark.parametrize("case", ["fsdp2", "fsdp2 lora"])
def test_plain_transformers_load_what_shards_saved(root: Path, case: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    ids = torch.tensor([[5, 6, 7, 8]])
    logits = []
    for where in ("one", "run-of-two"):
        folder = step_folder(root / where / case, 3) / "model"
        if "lora" in case:
            base = AutoModelForImageTextToText.from_pretrained(root / CASES[case][0], dtype=torch.float32)
            model = PeftModel.from_pretrained(base, folder)
        else:
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)
