"""Lets the files of this folder import each other's helpers by plain name, and lends them tiny checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model of each attention and of shifted outputs, in the released layouts."""
    from dlm.models.tiny import write_tiny

    root = tmp_path_factory.mktemp("dlm")
    return {kind: write_tiny(root / kind, kind, seed=3, window=128) for kind in ("llada", "sdar", "dream")}
