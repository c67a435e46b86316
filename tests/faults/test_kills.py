"""SIGKILL at named points of a run, then resume: equal to the uninterrupted run. See `kill_points.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMES = [line.split('"')[1] for line in (HERE / "kill_points.py").read_text().splitlines() if line.startswith('    "')]
NAMES = [name for name in NAMES if " " in name or name == "twice"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Differences by point; all runs in one process that forks."""
    command = [sys.executable, str(HERE / "kill_points.py"), str(tmp_path_factory.mktemp("kills"))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_every_point_was_reached(found: dict[str, list[str]]) -> None:
    assert list(found) == NAMES and len(NAMES) >= 20


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_resumes_equal(found: dict[str, list[str]], name: str) -> None:
    assert found[name] == []
