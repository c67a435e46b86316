"""bf16 autocast of a policy's passes, by the setting `model.autocast`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def is_half(choice: str, device: torch.device) -> bool:
    """choice: bf16, off, or auto (bf16 on GPUs)."""
    return choice == "bf16" or choice == "auto" and device.type == "cuda"


def autocast(choice: str, device: torch.device) -> AbstractContextManager[Any]:
    """Inside, matrix products run in bf16 where the choice says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if is_half(choice, device) else nullcontext()
