"""Global random states, for rewards and plug-ins that use them; the library itself draws from streams only."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed(value: int) -> None:
    """All of them, so that a run that was killed before its first checkpoint starts again as it did."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def tensors() -> dict[str, Tensor]:
    """States that are tensors by nature."""
    states = {"rng/torch": torch.get_rng_state()}
    for i in range(torch.cuda.device_count()):
        states[f"rng/cuda{i}"] = torch.cuda.get_rng_state(i)
    return states


def plain() -> dict[str, Any]:
    """States of Python and NumPy as JSON values."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, keys.tolist(), int(position), int(has_gauss), float(cached)],  # type: ignore[union-attr]
    }


def restore(saved: dict[str, Tensor], values: dict[str, Any]) -> None:
    version, numbers, gauss = values["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = values["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(saved["rng/torch"])
    for i in range(torch.cuda.device_count()):
        if f"rng/cuda{i}" in saved:
            torch.cuda.set_rng_state(saved[f"rng/cuda{i}"], i)
