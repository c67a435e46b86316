"""Runs of the family on tiny checkpoints: a configuration, a reward that random models earn, what a run logged."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mmrl import config_io
from mmrl.rewards import registry
from mmrl.training import checkpoint


@registry.reward("dlm-some-digits", tasks=())
def some_digits(outputs: Any, records: Any, info: Any) -> list[float]:
    return [sum(c.isascii() and c.isalnum() for c in o) / 8 for o in outputs]


TIMES = ("seconds", "tokens_per_s")
BASE: dict[str, Any] = {
    "family": "dlm",
    "recipe": "gdpo-diffusion",
    "threads": 1,
    "model": {"autocast": "off"},
    "sampling": {"max_new_tokens": 8, "block": 4, "steps": 4, "temperature": 1.0},
    "data": {"train": "sort:train?k=3&n=24", "eval": "sort:eval?k=3&n=6"},
    # digits at all, which even a random model now and then writes; right answers it does not
    "rewards": {"components": [{"name": "dlm-some-digits", "success": 0.1}]},
    "train": {"steps": 4, "prompts": 3, "group": 4, "epochs": 2},
    "optimiser": {"lr": 1e-3},
    "eval": {"metric": "reward"},
    "checkpoint": {"every": 2},
    "log": {"tensorboard": False},
}
FAST = {"components": [*BASE["rewards"]["components"], {"name": "tpf"}]}


def config(out: Path, folder: Path, **changes: Any) -> Any:
    raw = copy.deepcopy(BASE) | {"out": str(out)}
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and isinstance(raw.get(key), dict) else value
    raw["model"] = {"path": str(folder)} | raw["model"]
    return config_io.build(raw, folder=Path.cwd())


def lines(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.folders(run)[-1] / "trainable.safetensors")
