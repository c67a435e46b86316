"""Runs of the toy family through `mmrl train`, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mmrl.cli.main import run

BASE: dict[str, Any] = {
    "family": "toy",
    "recipe": "grpo",
    "data": {"train": "toy:train", "eval": "toy:eval"},
    "rewards": {"components": [{"name": "zeros"}]},
    "train": {"steps": 6, "prompts": 4, "group": 4},
    "optimiser": {"lr": 0.1},
    "ema": {"enabled": True, "decay": 0.9},
    "eval": {"every": 3, "samples": 2},
    "checkpoint": {"every": 2},
    "log": {"tensorboard": False},
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {k: merged(base[k], v) for k, v in changes.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return {**base, **changes, **both}


def train(folder: Path, out: str | Path, *, resume: bool = False, **changes: Any) -> int:
    """Exit code of `mmrl train folder/run.yaml out=OUT`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(merged(BASE, changes)))
    return run(["train", str(folder / "run.yaml"), f"out={out}", *(["--resume"] if resume else [])])


def resume(out: str | Path) -> int:
    """Exit code of the command that an interrupted run names."""
    return run(["train", str(out), "--resume"])


def error_of(told: str) -> str:
    """The one error line of a run that failed; lines before it tell of the run."""
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert told.splitlines()[-1:] == errors and "Traceback" not in told, told
    return errors[0]
