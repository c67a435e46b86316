"""Tiny checkpoints in the layout of releases, and configurations that name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlm.models.tiny import write_tiny
from mmrl import config_io
from mmrl.config import Config


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A llada and an sdar model; the block size of the latter is 4."""
    room = tmp_path_factory.mktemp("tiny")
    return {kind: write_tiny(room / kind, kind, seed=1) for kind in ("llada", "sdar")}  # type: ignore[arg-type]


def tiny_config(at: Path, **sections: Any) -> Config:
    """A configuration of reinforcement on sums, small enough for a test."""
    raw = {
        "family": "dlm",
        "recipe": "rloo",
        "device": "cpu",
        "model": {"path": str(at)},
        "data": {"train": "arithmetic:train?n=8", "eval": "arithmetic:eval?n=4"},
        "rewards": {"components": [{"name": "exact"}]},
        "sampling": {"max_new_tokens": 8, "block": 4, "steps": 4, "likelihood": {"name": "trajectory"}},
        "inputs": {"max_prompt_tokens": 64},
        "train": {"steps": 1, "prompts": 2, "group": 2},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section} if isinstance(section, dict) else section  # type: ignore[dict-item]
    return config_io.build(raw, folder=at.parent)
