"""Tensors that may lie in shards over the ranks (DTensor): the few places where that makes a difference."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor


def in_shards(tensor: Tensor) -> bool:
    """Without torch's module for them, which takes a second to import, there are none."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def full(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank; all ranks ask together."""
    return tensor.full_tensor() if in_shards(tensor) else tensor  # type: ignore[no-any-return,attr-defined]


def to_save(tensor: Tensor) -> Tensor:
    """The whole tensor in main memory; a shard's is put together and kept on rank 0 alone, so that saving needs room
    for one tensor on the others. All ranks ask together."""
    if not in_shards(tensor):
        return tensor.detach()
    whole = full(tensor.detach())
    return whole.cpu() if torch.distributed.get_rank() == 0 else whole.new_empty(0)


def as_shard_of(parameter: Any, whole: Tensor) -> Tensor:
    """A whole tensor (the same on every rank) laid out like `parameter`; one in shards stays."""
    if not in_shards(parameter) or in_shards(whole):
        return whole
    from torch.distributed.tensor import distribute_tensor

    here = whole.to(parameter.device)
    return distribute_tensor(here, parameter.device_mesh, parameter.placements, src_data_rank=None)


@torch.no_grad()
def put(parameter: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into a parameter, in shards or not."""
    parameter.copy_(as_shard_of(parameter, whole))
