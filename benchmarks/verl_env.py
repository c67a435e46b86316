"""verl in an environment of its own: it asks for another transformers than this project.

Made once, in build/verl, from the Python that runs the benchmarks: torch and what else is the same come from
there, verl itself and what its advantage functions import (ray among them) are installed beside it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from benchmarks import harness

FOLDER = harness.ROOT / "build" / "verl"
VERL = "verl==0.9.1"
WITH = (
    "transformers==5.9.0",
    "tensordict==0.10.0",
    "ray>=2.41",
    "omegaconf",
    "hydra-core",
    "codetiming",
    "dill",
    "pandas",
)


def python() -> str | None:
    """The interpreter that imports verl; None, with a word why, where it cannot be had."""
    made = FOLDER / "bin" / "python"
    if not (FOLDER / "complete").exists():
        try:
            _make(made)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or "").strip().splitlines()[-1:]
            print(f"  verl is left out: {' '.join(map(str, error.cmd[1:5]))} ... failed: {' '.join(said)}", flush=True)
            return None
    return str(made)


def _make(made: Path) -> None:
    print(f"  making {FOLDER.relative_to(harness.ROOT)} for {VERL}, about 400 MB", flush=True)
    _run(sys.executable, "-m", "venv", "--clear", str(FOLDER))
    shared = importlib.util.find_spec("torch")
    assert shared is not None and shared.origin is not None
    packages = next((FOLDER / "lib").glob("python*")) / "site-packages"
    (packages / "shared.pth").write_text(f"{Path(shared.origin).parents[1]}\n", encoding="utf-8")
    pip = (str(made), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*pip, *WITH)
    _run(*pip, "--no-deps", VERL)
    (FOLDER / "complete").touch()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
