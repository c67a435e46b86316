"""Silence of diffusers and transformers, and progress bars where there is something to wait for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

_BAR_FROM_BYTES = 1_000_000_000


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of diffusers and transformers: what matters is reported by the caller."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    levels, bars = [m.get_verbosity() for m in (ours, theirs)], theirs.is_progress_bar_enabled()
    diffusers_bars = ours.is_progress_bar_enabled()
    for module in (ours, theirs):
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, level in zip((ours, theirs), levels):
            module.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
        if diffusers_bars:
            ours.enable_progress_bar()


def bars(folder: Path) -> Any:
    """Progress bars of the libraries for models large enough to wait for."""
    size = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
    return quiet() if size < _BAR_FROM_BYTES else nullcontext()
