"""The running average: what is saved, evaluated and resumed; and what a step logs of its own optimiser."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrl import config_io, families
from mmrl.core.recipe import Recipe
from mmrl.core.table import Table
from mmrl.training import checkpoint, measures
from mmrl.training.run import train
from mmrl.training.setup import build_trainer
from mmrl.training.trainer import Trainer
from mmrl.training.update import Update

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "toy", families.Family("toy", config="toy_config", entry="toy_family"))


def config(out: Path, **sections: Any) -> Any:
    base: dict[str, Any] = {
        "family": "toy",
        "recipe": "grpo",
        "out": str(out),
        "data": {"train": "toy:train", "eval": "toy:eval"},
        "rewards": {"components": [{"name": "zeros"}]},
        "train": {"steps": 4, "prompts": 4, "group": 4},
        "optimiser": {"lr": 0.1},
        "log": {"tensorboard": False},
    }
    return config_io.build(base | sections, folder=Path.cwd())


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_average_is_saved_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def evaluate(policy: Any, held_out: Any, config: Any) -> dict[str, float]:
        seen.append(policy.shared.detach().clone())
        return {"reward": 0.5}

    monkeypatch.setattr("toy_family.evaluate", evaluate)
    run = train(config(tmp_path / "run", ema={"enabled": True, "decay": 0.9}), progress=False)
    folder = checkpoint.step_folder(run, 4)
    state = load_file(folder / "trainable.safetensors")
    model = load_file(folder / "model" / "model.safetensors")
    average = next(k for k in state if k.startswith("average/"))[: -len("0")]
    assert torch.equal(model["shared"], state[f"{average}0"]) and torch.equal(model["own"], state[f"{average}1"])
    assert (model["shared"] - state["policy/shared"]).abs().max() > 1e-3
    assert torch.equal(seen[-1], model["shared"])


def test_a_loaded_average_stays_where_it_was(tmp_path: Path) -> None:
    run = train(config(tmp_path / "run", ema={"enabled": True}), progress=False)
    saved = checkpoint.read(checkpoint.step_folder(run, 4))
    trainer, *_ = build_trainer(config(tmp_path / "new", ema={"enabled": True}), pytest.fail)
    (average,) = trainer.averages.values()
    places, before = [m.data_ptr() for m in average.shadow], average.shadow[0].clone()
    trainer.load_state(saved.tensors, saved.state["trainer"])
    assert [m.data_ptr() for m in average.shadow] == places
    assert not torch.equal(average.shadow[0], before)
    (channel,) = trainer.averages
    assert torch.equal(average.shadow[0], saved.tensors[f"average/{channel}/0"])


def test_the_logged_rate_is_the_one_of_the_step(tmp_path: Path) -> None:
    run = train(config(tmp_path / "run", optimiser={"lr": 0.1, "warmup": 2, "schedule": "linear"}), progress=False)
    assert [row["lr"] for row in rows(run)[1:]] == pytest.approx([0.05, 0.1, 0.1, 0.05])


def test_a_schedule_counts_the_steps_of_its_own_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "phase", lambda self, step, main: main if step % 3 == 0 else "other")
    c = config(tmp_path / "run", train={"steps": 7, "prompts": 4, "group": 4, "epochs": 2, "minibatches": 2})
    trainer, *_ = build_trainer(c, pytest.fail)
    assert {name: o.total for name, o in trainer.optimisers.items()} == {"tokens": 3 * 4}


def test_the_gap_is_that_of_the_first_update_made() -> None:
    """The first rows may all be masked; weights have not moved until an update is made."""
    table = Table({"mask_nt": torch.tensor([[True, False]]), "sampler_logp_nt": torch.zeros(1, 2)}, {})
    log = measures.UpdateLog()
    for logp in (0.5, 3.0):
        log.add(Update(0.0, {}, {}, 1, 1, torch.full((1, 2), logp)), 1.0, True, table)
    assert log.values(0.1, 0)["sampler_gap"] == pytest.approx(0.6487, abs=1e-4)


def test_masked_first_part_still_logs_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._one_update

    def first_part_masked(self: Trainer, *args: Any) -> None:
        original(self, *args) if args[6] > 0 else None

    monkeypatch.setattr(Trainer, "_one_update", first_part_masked)
    c = config(tmp_path / "run", train={"steps": 1, "prompts": 4, "group": 4, "minibatches": 2})
    assert rows(train(c, progress=False))[1]["sampler_gap"] < 1e-9


def test_a_summary_is_strict_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = float("nan")
    monkeypatch.setattr("toy_family.evaluate", lambda policy, held_out, config: {"reward": 0.5, "map": nan})
    run = train(config(tmp_path / "run"), progress=False)
    for path in (run / "summary.json", checkpoint.step_folder(run, 4) / "state.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    assert json.loads((run / "summary.json").read_text())["after"] == {"reward": 0.5, "map": None}


def test_damaged_steps_do_not_push_out_new_ones(tmp_path: Path) -> None:
    every = {"every": 1, "keep_last": 2, "keep_best": False}
    run = train(config(tmp_path / "run", checkpoint={**every, "keep_last": 3}), progress=False)
    for step in (3, 4):
        (checkpoint.step_folder(run, step) / "state.json").write_text("{}")
    longer = {"steps": 3, "prompts": 4, "group": 4}
    train(config(run, checkpoint=every, train=longer), resume=True, progress=False)
    assert [p.name for p in checkpoint.folders(run)] == ["step-000002", "step-000003"]
    assert checkpoint.fault(checkpoint.step_folder(run, 3)) is None
