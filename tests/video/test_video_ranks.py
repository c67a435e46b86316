"""Video policies on two ranks, whole (DDP) and in shards (FSDP2): the run of one process, clips read ahead or not, in
float64, and the same weights on both ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch, log, tensors
from video_files import steady, write_video

from mmrl import config_io
from mmrl.training.run import Session, train
from mmrl.vlm import family
from video import reading, tiny

DIFFICULTY = {"reference": 0.45, "threshold": 0.0, "traces": 0, "modes": "both"}  # every group: noise, or a hint
#: As in the file for 8 GPUs, whose groups too are longer than a piece.
SHIPPED = {"gradient_checkpointing": True, "freeze": ["vision", "projector"], "piece_tokens": 16}
FSDP = {"distributed": {"mode": "fsdp2"}}
CASES: dict[str, dict[str, Any]] = {
    "tw-grpo": {},
    "tw-grpo lora": {"kind": "qwen3_vl", "model": {"adapter": {"kind": "lora", "rank": 4}, "shared_prefix": "packed"}},
    "tw-grpo fsdp2": {"kind": "qwen3_vl", **FSDP},  # every weight trains, the vision tower's too
    "tw-grpo fsdp2 checkpointing": {**FSDP, "model": SHIPPED},
    "deepvideo-r1": {"recipe": "deepvideo-r1", "selection": {"options": DIFFICULTY}},
}
pytestmark = pytest.mark.slow


def data(folder: Path) -> None:
    """Seven questions: one without a clip, one with two."""
    for i in range(7):
        write_video(folder / f"{i}.mp4", steady(8 + 4 * i), size=(32, 16 if i % 2 else 32))
    clips = [[f"{i}.mp4"] for i in range(7)]
    clips[2], clips[4] = [], ["4.mp4", "0.mp4"]
    asked = {"task": "choice", "prompt": "Which?", "answer": "A", "response": "<think>the first one moves</think>A"}
    rows = [{"id": f"r{i}", **asked, "videos": files} for i, files in enumerate(clips)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings(root: Path, case: str, where: str, ahead: bool) -> dict[str, Any]:
    change = dict(CASES[case])
    base: dict[str, Any] = {
        "family": "video",
        "recipe": "tw-grpo",
        "out": str(root / where / f"{case} {'ahead' if ahead else 'plain'}"),
        "threads": 1,
        "device": "cpu",
        "model": {"path": str(root / change.pop("kind", "qwen2_5_vl")), "autocast": "off", "piece_tokens": 256},
        "sampling": {"max_new_tokens": 5},
        "inputs": tiny.INPUTS | {"read_ahead": ahead, "cached_clips": 1},
        "data": {"train": str(root / "data.jsonl")},
        "plugins": ["video_ranks"],
        "rewards": {"components": [{"name": "ordinals"}]},
        "train": {"steps": 2, "prompts": 3, "group": 3},
        "optimiser": {"lr": 1e-3},
        "checkpoint": {"every": 2},
        "log": {"tensorboard": False},
    }
    for key, value in change.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
    return base


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one/CASE plain by one process; run-of-two/CASE plain and run-of-two/CASE ahead by two."""
    root = tmp_path_factory.mktemp("video_ranks")
    for kind in tiny.KINDS:
        tiny.build(kind, root / kind)
    data(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "_dtype", lambda options, device: torch.float64)
        patch.setattr(reading, "read", reading.read)  # the plug-in puts its own in their place
        patch.setattr(Session, "finish", Session.finish)
        for case in CASES:
            train(config_io.build(settings(root, case, "one", False), folder=root), progress=False)
    jobs = [
        {"config": settings(root, case, "run-of-two", ahead), "double": True}
        for case in CASES
        for ahead in (False, True)
    ]
    assert launch(jobs, root) == [["done"] * len(jobs)] * 2
    return root


@pytest.mark.parametrize("ahead", ["plain", "ahead"])
@pytest.mark.parametrize("case", CASES)
def test_the_run_of_one(root: Path, case: str, ahead: str) -> None:
    one, other = root / "one" / f"{case} plain", root / "run-of-two" / f"{case} {ahead}"
    rows = log(one)
    assert len(rows) == 3 and all(row["grad_norm"] > 1e-3 for row in rows[1:])
    assert case != "deepvideo-r1" or all(row["resample_rounds"] > 0 for row in rows[1:]), "groups with noise or a hint"
    for a, b in zip(rows, log(other), strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), key
    alone, shared = tensors(one, 2), tensors(other, 2)
    assert alone.keys() == shared.keys()
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("ahead", ["plain", "ahead"])
@pytest.mark.parametrize("case", CASES)
def test_both_ranks_end_with_the_same_weights_and_read_their_own_share(root: Path, case: str, ahead: str) -> None:
    """Bit by bit the same. Read ahead: what the second step asks of the rank, and nothing of it in the step."""
    first, second = (json.loads((root / "ends" / f"{case} {ahead}.rank{r}").read_text()) for r in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["shards"] == second["shards"] == ("fsdp2" in case)
    if ahead == "plain":
        assert first["ahead"] == second["ahead"] == 0 and first["step"] > 0 and second["step"] > 0
    else:
        assert first["ahead"] > 0 and second["ahead"] > 0
        plain = [json.loads((root / "ends" / f"{case} plain.rank{r}").read_text()) for r in (0, 1)]
        for a, b in zip((first, second), plain, strict=True):
            assert a["step"] < b["step"] and a["step"] + a["ahead"] >= b["step"]
