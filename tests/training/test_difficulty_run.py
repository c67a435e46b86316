"""The selector of DeepVideo-R1 in a run: groups sampled again in the same step, and resumed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmrl import config_io, families
from mmrl.errors import UserError
from mmrl.selection import hints
from mmrl.training import checkpoint
from mmrl.training.run import train

sys.path.insert(0, str(Path(__file__).parent))
import toy_family
from toy import ToyPolicy, records

OPTIONS = {"reference": 2.0, "threshold": 0.0, "reward_max": 4.0, "traces": 3, "modes": "hard"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, int, str | None]]]:
    """What each call of the policy was asked for while training; records have no response to take a trace from."""
    monkeypatch.setitem(families.FAMILIES, "toy", families.Family("toy", config="toy_config", entry="toy_family"))
    plain = [replace(record, response=None) for record in records(6)]
    monkeypatch.setattr(toy_family, "builtin", lambda name: plain)
    found: list[list[tuple[str, int, str | None]]] = []
    sample = ToyPolicy.rollout

    def watch(self: ToyPolicy, requests: Any, streams: Any, **more: Any) -> Any:
        if streams.purpose == "train":
            found.append([(r.record.id, r.n, r.prompt_edit) for r in requests])
        return sample(self, requests, streams, **more)

    monkeypatch.setattr(ToyPolicy, "rollout", watch)
    return found


def config(out: Path, **sections: Any) -> Any:
    data = {
        "family": "toy",
        "recipe": "deepvideo-r1",
        "recipe_options": {"penalties": []},
        "out": str(out),
        "data": {"train": "toy:train", "eval": "toy:eval", "shuffle": False},
        "rewards": {"components": [{"name": "zeros"}]},
        "selection": {"options": OPTIONS},
        "train": {"steps": 2, "prompts": 2, "group": 4},
        "optimiser": {"lr": 0.1},
        "log": {"tensorboard": False},
    }
    for key, value in sections.items():
        data[key] = {**data[key], **value}
    return config_io.build(data, folder=Path.cwd())


def steps(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]


def test_hard_groups_are_sampled_again_with_a_hint(tmp_path: Path, asked: list[Any]) -> None:
    """Every step: the plan; a request for traces of records without one; the hinted groups, which alone are trained on:
    two epochs of two minibatches of whole groups."""
    run = train(config(tmp_path / "run"), progress=False)
    rows = steps(run)
    assert [(r["filtered_groups"], r["resample_rounds"], r["rows"], r["updates"]) for r in rows] == [(4, 2, 8, 4)] * 2
    first, traces, hinted = asked[:3]
    assert first == [("r0", 4, None), ("r1", 4, None)]
    assert [(r, n) for r, n, _ in traces] == [("r0", 3), ("r1", 3)]
    assert all("The correct answer is: 0." in edit for _, _, edit in traces)
    stored = checkpoint.read(checkpoint.step_folder(run, 2)).state["trainer"]["selector"]
    assert len(stored["means"]) == 4 and stored["drawn"] == 4
    for record, n, edit in hinted:
        assert n == 4 and edit == (hints.hint(stored["traces"][record], 1.0) if record in stored["traces"] else None)
    assert stored["traces"]


def test_a_resumed_run_goes_on_with_its_window_and_traces(tmp_path: Path, asked: list[Any]) -> None:
    """Six steps over six records, two a step: in the fourth the traces of the first are there again."""
    whole = train(config(tmp_path / "whole", train={"steps": 6}), progress=False)
    calls = list(asked)
    asked.clear()
    train(config(tmp_path / "parts", train={"steps": 3}), progress=False)
    parts = train(config(tmp_path / "parts", train={"steps": 6}), resume=True, progress=False)
    assert asked == calls
    for a, b in zip(steps(whole), steps(parts), strict=True):
        same = {k for k in a if not k.startswith("seconds") and "per_s" not in k and k != "time"}
        assert {k: a[k] for k in same} == {k: b[k] for k in same}


def test_groups_near_the_mean_are_left_alone(tmp_path: Path, asked: list[Any]) -> None:
    calm = {**OPTIONS, "reference": None, "threshold": 1.0}
    rows = steps(train(config(tmp_path / "run", selection={"options": calm}), progress=False))
    assert [(r["filtered_groups"], r["resample_rounds"], r["rows"]) for r in rows] == [(0, 0, 8)] * 2
    assert [len(call) for call in asked] == [2, 2]


def test_noise_is_refused_before_weights_load_where_there_are_no_frames(tmp_path: Path, asked: list[Any]) -> None:
    noisy = config(tmp_path / "run", selection={"options": {**OPTIONS, "modes": "both"}})
    with pytest.raises(UserError, match="set frame_noise, which this family's policy does not have; set .* to hard"):
        train(noisy, progress=False)
    assert asked == [] and not (tmp_path / "run" / "metrics.jsonl").exists()
