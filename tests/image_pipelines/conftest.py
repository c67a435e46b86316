"""Tiny pipelines, written once a session; tests that change a folder copy it first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_cases import CASES

from image_gen.pipelines import tiny


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: tiny.write(case.kind, root / name, **case.sizes) for name, case in CASES.items()}
