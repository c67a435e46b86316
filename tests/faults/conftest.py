"""Where the shared parts of these tests are found, and the toy family that they train."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "training")]
torch.set_num_threads(1)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmrl import families

    monkeypatch.setitem(families.FAMILIES, "toy", families.Family("toy", config="toy_config", entry="toy_family"))
