"""Entropy bonus."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.core.registry import stage


@stage("penalty", "entropy")
def entropy(*, entropy_nt: Tensor, mask_nt: Tensor) -> Tensor:
    """-H per decision, nats: with a positive coefficient the loss rewards entropy. [N,T], carries gradient."""
    return -torch.where(mask_nt.bool(), entropy_nt, torch.zeros_like(entropy_nt))
