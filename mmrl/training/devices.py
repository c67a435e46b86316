"""The device a configuration names, if this machine has it."""

from __future__ import annotations

import torch

from mmrl.errors import UserError

KINDS = ("cpu", "cuda", "mps", "xpu")


def find_device(name: str) -> torch.device:
    """`auto` (a GPU if there is one), cpu, cuda or cuda:N, ... Raises UserError for what this machine has not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: unknown device {name!r}; use auto, cpu or cuda") from error
    if device.type not in KINDS:
        raise UserError(f"device: {name!r} cannot train; use auto, cpu or cuda")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError("device: cuda was asked for, but torch sees no GPU; use cpu or auto")
        if device.index is not None and device.index >= count:
            raise UserError(f"device: {name!r} was asked for, torch sees {count} GPUs, counted from 0; use a lower one")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise UserError(f"device: torch cannot use {name!r} here ({reason}); use auto or cpu") from error
    return device
