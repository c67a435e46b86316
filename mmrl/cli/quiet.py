"""Keep the libraries' own progress bars out of the way when nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path


def quiet_libraries(model_path: str) -> None:
    """Switch off the bars of transformers and the hub for local models. To be called before they are imported."""
    if model_path.startswith("embedded:") or Path(model_path).exists():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
