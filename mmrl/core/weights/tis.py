"""Truncated importance sampling against the mismatch between sampler and trainer."""

from __future__ import annotations

from torch import Tensor

from mmrl.core.ratios import clamped, masked_difference
from mmrl.core.registry import stage


@stage("weight", "tis")
def tis(*, old_logp_nt: Tensor, sampler_logp_nt: Tensor, mask_nt: Tensor, cap: float = 2.0) -> Tensor:
    """sg[min(exp(old_logp - sampler_logp), cap)]. [N,T], detached. 1 where masked or not finite in the sampler."""
    return clamped(masked_difference(old_logp_nt.detach(), sampler_logp_nt, mask_nt)).exp().clamp(max=cap)
