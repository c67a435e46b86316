"""Faults of rewards and of the arithmetic while a run goes on: skipped and counted, or stopped and saved."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_runs
from fault_compare import differences
from safetensors.torch import load_file
from toy import ToyPolicy

from mmrl.rewards import registry
from mmrl.training import checkpoint

pytestmark = pytest.mark.usefixtures("toy")
PLUGIN = """
import os, time
from pathlib import Path
from mmrl.rewards import reward

HERE = Path(__file__).parent


def struck(outputs, records, info):
    if (HERE / "fault").exists():
        kind = (HERE / "fault").read_text()
        for record, row in zip(records, info):
            if record.id == "r3" and row["sample"] == 1:
                if kind == "hangs":
                    time.sleep(600)
                if kind == "exits":
                    os._exit(7)
                os.kill(os.getpid(), 11)
    return [float(o.count("0")) for o in outputs]


reward("struck", tasks=("toy",))(struck)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "struck_plugin.py").write_text(PLUGIN)
    monkeypatch.setattr(registry, "_REWARDS", dict(registry.registered()))
    yield tmp_path
    sys.modules.pop("struck_plugin", None)


def config(on_error: str) -> dict[str, Any]:
    return {
        "plugins": ["struck_plugin"],
        "rewards": {"components": [{"name": "struck"}], "on_error": on_error, "workers": 1, "timeout_s": 2.0},
        "data": {"train": "toy:train", "shuffle": False, "eval": None},
        "train": {"steps": 3, "prompts": 3, "group": 2},  # r0 r1 r2, r3 r4 r5, r0 r1 r2
        "checkpoint": {"every": 0},
    }


KINDS = {"hangs": "longer than rewards.timeout_s = 2 s", "exits": "died twice (exit code 7)", "crashes": "code -11)"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_in_trouble(kind: str, plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = plugin / "whole"
    assert toy_runs.train(plugin, whole, **config("stop")) == 0
    (plugin / "fault").write_text(kind)
    capsys.readouterr()

    assert toy_runs.train(plugin, plugin / "stop", **config("stop")) == 2
    told = capsys.readouterr().err
    message = toy_runs.error_of(told)
    for part in ("record 'r3', sample 1", "'struck'", KINDS[kind], "rewards.on_error: skip"):
        assert part in message, message
    assert f"saved up to step 1; once this is mended, go on with: mmrl train {plugin / 'stop'} --resume" in told

    assert toy_runs.train(plugin, plugin / "skip", **config("skip")) == 0
    told = capsys.readouterr().err
    assert told.count("reward skipped: record 'r3', sample 1") == 1 and KINDS[kind] in told
    assert json.loads((plugin / "skip" / "summary.json").read_text())["reward_failures"] == 1
    rows = [json.loads(line) for line in (plugin / "skip" / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("reward_failures") for row in rows] == [None, 0, 1, 1]

    (plugin / "fault").unlink()
    assert toy_runs.resume(plugin / "stop") == 0
    assert [line for line in differences(whole, plugin / "stop") if not line.startswith("checkpoints: ")] == []


# ---- gradients -------------------------------------------------------------------------------------------------


def poisoned(patch: pytest.MonkeyPatch, steps: set[int], value: float) -> None:
    """One element of one gradient, at these calls of the optimiser (from 1)."""
    from mmrl.training.optim import ChannelOptimiser

    original, calls = ChannelOptimiser.step, []

    def step(self: ChannelOptimiser, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) in steps:
            gradient = self.parameters[-1].grad
            assert gradient is not None
            gradient.view(-1)[2] = value
        return original(self, *arguments, **options)

    patch.setattr(ChannelOptimiser, "step", step)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_is_skipped(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned(monkeypatch, {3}, value)
    assert toy_runs.train(tmp_path, tmp_path / "run", checkpoint={"every": 1, "keep_last": 9}) == 0
    told = capsys.readouterr().err
    assert told.count("update skipped: ") == 1 and "not finite" in told
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][1:]
    assert [row["skipped_updates"] for row in rows] == [0, 0, 1, 1, 1, 1]
    assert [row["updates"] for row in rows] == [1, 1, 0, 1, 1, 1]
    before, after = (load_file(checkpoint.step_folder(tmp_path / "run", s) / "trainable.safetensors") for s in (2, 3))
    same = [k for k in before if k.startswith(("policy/", "optimiser/", "average/"))]
    assert same and all(torch.equal(before[k], after[k]) for k in same)  # nothing of it got anywhere


def test_several_in_a_row_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One good update in between starts the count anew. The mended run goes on."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    change = {"train": {"steps": 9, "max_bad_steps": 3}, "checkpoint": {"every": 0}, "eval": {"every": 0}}
    with monkeypatch.context() as patch:
        poisoned(patch, {2, 3}, float("nan"))
        assert toy_runs.train(tmp_path, whole, **change) == 0
    with monkeypatch.context() as patch:
        poisoned(patch, {2, 3, 5, 6, 7}, float("nan"))
        assert toy_runs.train(tmp_path, out, **change) == 2
    told = capsys.readouterr().err
    message = toy_runs.error_of(told)
    assert "3 updates in a row were not finite" in message and "optimiser.lr" in message
    newest = checkpoint.newest_whole(out, tell=pytest.fail)
    assert newest is not None and newest.name == "step-000006" and "saved up to step 6" in told
    weights = load_file(newest / "trainable.safetensors")
    assert all(torch.isfinite(v).all() for k, v in weights.items() if not k.startswith("rng/"))
    assert toy_runs.resume(out) == 0


def test_a_record_that_cannot_be_used_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a vanished picture is to the trainer (the real one: tests/cli/test_bad_input.py)."""
    from mmrl.errors import RecordError

    original = ToyPolicy.rollout
    fault = tmp_path / "fault"

    def rollout(self: ToyPolicy, requests: Any, streams: Any, **options: Any) -> Any:
        if fault.exists() and any(r.record.id == "r4" for r in requests) and not options.get("greedy"):
            raise RecordError("r4", "picture x.png: no such file")
        return original(self, requests, streams, **options)

    monkeypatch.setattr(ToyPolicy, "rollout", rollout)
    change: dict[str, Any] = {
        "train": {"steps": 3, "prompts": 3},
        "data": {"train": "toy:train", "shuffle": False, "eval": None},
        "checkpoint": {"every": 0},
    }
    assert toy_runs.train(tmp_path, tmp_path / "whole", **change) == 0
    fault.touch()
    assert toy_runs.train(tmp_path, tmp_path / "stop", **change) == 2
    told = capsys.readouterr().err
    assert "record 'r4': picture x.png: no such file" in toy_runs.error_of(told) and "saved up to step 1" in told
    skip = {**change, "data": {**change["data"], "on_error": "skip"}}
    assert toy_runs.train(tmp_path, tmp_path / "skip", **skip) == 0
    assert "record skipped: record 'r4'" in capsys.readouterr().err
    assert json.loads((tmp_path / "skip" / "summary.json").read_text())["skipped_records"] == 1
    os.unlink(fault)
    assert toy_runs.resume(tmp_path / "stop") == 0
    left = differences(tmp_path / "whole", tmp_path / "stop")
    assert [line for line in left if not line.startswith("checkpoints: ")] == []
