"""Trackers: what they are given, and that a resumed run goes on in the same place."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmrl.config import Logging
from mmrl.training.metrics import MetricsLog, clean


def points(run: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(e.step, e.value) for e in events.Scalars(name)]


def opened(run: Path, keep: int = 0, **config: Any) -> MetricsLog:
    chosen = {"tensorboard": False, "project": "digits", **config}
    return MetricsLog(run, Logging(**chosen), keep_lines=keep, settings={"seed": 1})


def write(log: MetricsLog, steps: range, offset: float = 0.0) -> None:
    for step in steps:
        log.write({"step": step, "reward": step + offset})
    log.close()


@pytest.fixture(autouse=True)
def first_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one second are ordered by their number as text: a tenth file would come before the ninth."""
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def test_tensorboard_has_the_points(tmp_path: Path) -> None:
    write(opened(tmp_path, tensorboard=True), range(3), offset=0.5)
    assert points(tmp_path, "reward") == [(0, 0.5), (1, 1.5), (2, 2.5)]


def test_tensorboard_after_a_resume_has_every_step_once(tmp_path: Path) -> None:
    write(opened(tmp_path, tensorboard=True), range(5))
    write(opened(tmp_path, keep=3, tensorboard=True), range(3, 6), offset=100)
    assert points(tmp_path, "reward") == [(0, 0), (1, 1), (2, 2), (3, 103), (4, 104), (5, 105)]


def test_tensorboard_keeps_its_points_when_the_log_was_taken_away(tmp_path: Path) -> None:
    write(opened(tmp_path, tensorboard=True), range(5))
    (tmp_path / "metrics.jsonl").unlink()
    write(opened(tmp_path, tensorboard=True), range(3, 5), offset=100)
    assert points(tmp_path, "reward") == [(0, 0), (1, 1), (2, 2), (3, 103), (4, 104)]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """make(name) puts a package in place that notes its calls."""

    def make(name: str, given: str | None = None) -> list[tuple[str, Any]]:
        calls: list[tuple[str, Any]] = []

        def init(**kwargs: Any) -> SimpleNamespace:
            calls.append(("init", kwargs))
            return SimpleNamespace(name=given or kwargs["name"])

        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.init = init  # type: ignore[attr-defined]
        module.log = lambda values, step: calls.append(("log", (step, values)))  # type: ignore[attr-defined]
        module.finish = lambda: calls.append(("finish", None))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
        return calls

    return make


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, fake: Any) -> None:
    calls = fake("wandb")
    write(opened(tmp_path, wandb=True), range(2))
    write(opened(tmp_path, keep=1, wandb=True), range(1, 2))
    first, second = (kwargs for name, kwargs in calls if name == "init")
    assert first == {
        "project": "digits",
        "name": tmp_path.name,
        "config": {"seed": 1},
        "id": (tmp_path / "wandb_run_id").read_text().strip(),
        "resume": "allow",
    }
    assert second["id"] == first["id"] and len(first["id"]) >= 8
    assert [c for c in calls if c[0] != "init"][:3] == [
        *(("log", (0, {"reward": 0.0})), ("log", (1, {"reward": 1.0})), ("finish", None))
    ]


def test_two_wandb_runs_differ(tmp_path: Path, fake: Any) -> None:
    calls = fake("wandb")
    for name in "ab":
        (tmp_path / name / "same").mkdir(parents=True)
        write(opened(tmp_path / name / "same", wandb=True), range(1))
    first, second = (kwargs["id"] for name, kwargs in calls if name == "init")
    assert first != second


def test_trackio_goes_on_under_the_name_it_gave(tmp_path: Path, fake: Any) -> None:
    calls = fake("trackio", given="brave-lamp-3")  # the name of the folder was taken
    write(opened(tmp_path, trackio=True), range(1))
    write(opened(tmp_path, keep=1, trackio=True), range(1, 2))
    first, second = (kwargs for name, kwargs in calls if name == "init")
    assert (first["name"], first["resume"]) == (tmp_path.name, "never")
    assert (second["name"], second["resume"]) == ("brave-lamp-3", "allow")


def test_numbers_that_json_lacks_become_null_at_any_depth(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    assert clean({"a": nan, "b": [1, (inf, 2.5)], "c": {"d": -inf, "e": "nan", "f": True}}) == {
        "a": None,
        "b": [1, [None, 2.5]],
        "c": {"d": None, "e": "nan", "f": True},
    }
    log = opened(tmp_path)
    log.write({"step": 0, "nested": {"x": nan}})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "nested": {"x": None}}
