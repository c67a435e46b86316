"""The modules of `studies/` are scripts beside each other."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "studies"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the stand-in's processes more often than at real runs."""
    import study_jobs

    monkeypatch.setattr(study_jobs, "POLL_S", 0.01)
