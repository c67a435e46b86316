"""`train.max_seconds` ends a run by its training time, over all sessions, as its last step would."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mmrl import config_io, families
from mmrl.cli import plan
from mmrl.errors import UserError
from mmrl.training import checkpoint
from mmrl.training.progress import RunProgress
from mmrl.training.run import train
from mmrl.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy family, and a clock by which every step takes 10 seconds."""
    monkeypatch.setitem(families.FAMILIES, "toy", families.Family("toy", config="toy_config", entry="toy_family"))
    original = Trainer.step

    def step(self: Trainer) -> dict:
        before, values = self.counters.seconds, original(self)
        self.counters.seconds = before + 10.0
        return values

    monkeypatch.setattr(Trainer, "step", step)


def config(out: Path, **options):
    return config_io.build(
        {
            "family": "toy",
            "recipe": "grpo",
            "out": str(out),
            "data": {"train": "toy:train", "eval": "toy:eval"},
            "rewards": {"components": [{"name": "zeros"}]},
            "train": {"steps": 50, "prompts": 2, "group": 2, **options},
            "checkpoint": {"every": 100},
            "log": {"tensorboard": False},
        },
        folder=Path.cwd(),
    )


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_the_step_that_uses_it_up_is_the_last_one(tmp_path: Path) -> None:
    run = train(config(tmp_path / "run", max_seconds=25.0), progress=False)
    found = summary(run)
    assert (found["steps"], found["seconds"]) == (3, 30.0)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "eval/reward" in rows[-1] and rows[-1]["step"] == 3
    assert [p.name for p in checkpoint.folders(run)] == ["step-000003"]
    assert summary(train(config(tmp_path / "exact", max_seconds=20.0), progress=False))["steps"] == 2


def test_steps_end_a_run_that_has_seconds_left(tmp_path: Path) -> None:
    run = train(config(tmp_path / "run", steps=2, max_seconds=1000.0), progress=False)
    assert summary(run)["steps"] == 2 and "seconds_cpu" in summary(run)


def test_the_seconds_of_earlier_sessions_count(tmp_path: Path) -> None:
    train(config(tmp_path / "run", max_seconds=20.0), progress=False)
    again = train(config(tmp_path / "run", max_seconds=20.0), resume=True, progress=False)
    assert summary(again)["steps"] == 2
    longer = train(config(tmp_path / "run", max_seconds=45.0), resume=True, progress=False)
    assert (summary(longer)["steps"], summary(longer)["seconds"]) == (5, 50.0)


def test_nonsense_is_refused_and_the_plan_says_when_it_ends(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.max_seconds"):
        config(tmp_path / "run", max_seconds=0)
    made = config(tmp_path / "run", max_seconds=90)
    said = plan.arithmetic(made, config_io.recipe_of(made), ranks=1)
    assert said[-1] == "ends earlier once 90 s of training are used up (train.max_seconds)"
    made.optimiser.schedule = "cosine"
    assert (
        "cosine schedule is laid out over all 50 steps" in plan.arithmetic(made, config_io.recipe_of(made), ranks=1)[-1]
    )


def test_progress_estimates_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress(1000, 0, enabled=True, max_seconds=60.0) as shown:
        shown.step({"reward": 1.0}, 15.0)
        assert shown.total == 4
        shown.last_plain -= 100
        shown.step({"reward": 1.0}, 20.0)
        assert shown.total == 6
    assert "step 2/6  20 of 60 s  reward 1.000" in capsys.readouterr().err
