"""Runs of the embedded model: each recipe, killed and resumed; what the quickstart promises of its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrl import config_io
from mmrl.training import checkpoint
from mmrl.training.run import train
from mmrl.training.trainer import Trainer
from mmrl.vlm.embedded_models import EMBEDDED

#: `clips:train` starts with one question of each kind.
SMALL = [
    "data.train=clips:train?n=14",
    "data.eval=clips:eval?n=7",
    "train.steps=4",
    "train.prompts=4",
    "train.group=4",
    "eval.every=0",
    "checkpoint.every=1",
    "checkpoint.keep_last=9",
    "log.tensorboard=false",
]
RECIPES = {
    "tw-grpo": [],
    "tw-grpo, active, two updates": ["recipe_options.weight.tw.form=active", "train.minibatches=2", "train.epochs=2"],
    "token-mean-soft": ["recipe=token-mean-soft"],
    "grpo-soft": ["recipe=grpo-soft"],
    "reg-grpo": ["recipe=reg-grpo"],
    # the first rewards are above the reference: some clips of the next groups are made noisy
    "deepvideo-r1": ["recipe=deepvideo-r1", "selection.options={reference: 1.0, threshold: 0.1}"],
    "sft": ["recipe=sft", "train.group=1"],
}


def run(out: Path, *more: str, resume: bool = False) -> Path:
    return train(config_io.resolve("quickstart/video", [*SMALL, *more, f"out={out}"]), resume=resume, progress=False)


def lines(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "tokens_per_s"))} for row in rows]


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole", *RECIPES[name])
    plain, count = Trainer.step, 0

    def killed(self: Trainer) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt  # as a kill would: nothing is saved now
        return plain(self)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", *RECIPES[name])
    monkeypatch.setattr(Trainer, "step", plain)
    parts = run(tmp_path / "parts", *RECIPES[name], resume=True)
    assert lines(parts) == lines(whole)
    a, b = (checkpoint.folders(folder)[-1] for folder in (whole, parts))
    (file,) = a.glob("model/*.safetensors")
    one, other = load_file(file), load_file(b / file.relative_to(a))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    start = load_file(EMBEDDED["embedded:video"] / "model.safetensors")
    assert any(not torch.equal(one[k], start[k]) for k in start if k in one), "something was learned"


def test_the_summary_tells_what_is_seen_and_what_is_known_blindly(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", "train.steps=1")
    found = json.loads((folder / "summary.json").read_text())
    for side in ("before", "after", "chance"):
        assert {"exact", "soft", "blind_soft", "reward"} <= found[side].keys()
    names = list(found["before"])
    assert names[:4] == ["exact", "soft", "blind_soft", "reward"], "the whole before its types"
