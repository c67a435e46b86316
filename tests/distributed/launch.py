"""Starts the worker on two ranks, or reads what one rank would give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from mmrl.training import checkpoint

HERE = Path(__file__).parent
TIMES = ("seconds", "tokens_per_s")


def toy(out: Path, **sections: Any) -> dict[str, Any]:
    """A configuration of the toy family; mappings are merged into the default ones."""
    base: dict[str, Any] = {
        "family": "toy",
        "recipe": "grpo",
        "out": str(out),
        "data": {"train": "toy:train", "eval": "toy:eval"},
        "rewards": {"components": [{"name": "zeros"}]},
        "train": {"steps": 5, "prompts": 5, "group": 4},
        "optimiser": {"lr": 0.1},
        "checkpoint": {"every": 2},
        "log": {"tensorboard": False, "entropy_every": 2},
    }
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base


def launch(jobs: list[dict[str, Any]], folder: Path, *, ranks: int = 2) -> list[list[str]]:
    """The outcomes of each rank. Raises AssertionError with the output when a process fails."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [*start, str(HERE / "worker.py"), str(file)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(Path(f"{file}.rank{rank}").read_text()) for rank in range(ranks)]


def log(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]


def tensors(run: Path, step: int) -> dict[str, Any]:
    """Weights and optimiser state of a checkpoint, random states apart."""
    found = load_file(checkpoint.step_folder(run, step) / "trainable.safetensors")
    return {k: v for k, v in found.items() if not k.startswith("rng/")}
