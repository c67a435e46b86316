"""One tiny checkpoint of each layout, written once and read by the real loading code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dlm.models import tiny
from dlm.models.layers import Transformer
from dlm.models.loading import load_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: tiny.write_tiny(root / kind, kind, seed=3) for kind in tiny.KINDS}


@pytest.fixture
def load(folders: dict[str, Path]) -> Callable[..., Transformer]:
    """A model of a kind in float64."""

    def make(kind: str, dtype: torch.dtype = torch.float64) -> Transformer:
        return load_model(str(folders[kind]), dtype=dtype)[0]

    return make
