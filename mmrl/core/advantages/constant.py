"""A constant advantage: what turns the loop into supervised imitation or plain reward-free training."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.core.groups import as_float
from mmrl.core.registry import stage


@stage("advantage", "constant", signal_without_variance=True)
def constant(*, reward_n: Tensor, value: float = 1.0) -> Tensor:
    """A_i = value on every row. [N], detached. Recipe `sft` uses it with the supervised gate."""
    return torch.full_like(as_float(reward_n), value)


@stage("advantage", "raw", signal_without_variance=True)
def raw(*, reward_n: Tensor) -> Tensor:
    """A_i = r_i: REINFORCE without a baseline. [N], detached; rows without reward get 0."""
    return torch.nan_to_num(as_float(reward_n), nan=0.0).detach()
