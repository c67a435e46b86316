"""Gates without a ratio: plain REINFORCE, and a family's own supervised loss."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.core.ratios import factor
from mmrl.core.registry import stage


@stage("gate", "reinforce")
def reinforce(*, logp_nt: Tensor, adv_nt: Tensor, mask_nt: Tensor) -> dict[str, Tensor]:
    """loss = -A logp. [N,T]. Detached: A. On-policy it has the gradient of rho A at rho = 1."""
    return {"loss_nt": -factor(adv_nt, mask_nt) * torch.where(mask_nt.bool(), logp_nt, torch.zeros_like(logp_nt))}


@stage("gate", "supervised")
def supervised(*, supervised_nt: Tensor, adv_nt: Tensor, mask_nt: Tensor) -> dict[str, Tensor]:
    """loss = A * the family's supervised loss (negative log-likelihood, ELBO, velocity error). [N,T]. Detached: A."""
    return {
        "loss_nt": factor(adv_nt, mask_nt) * torch.where(mask_nt.bool(), supervised_nt, torch.zeros_like(supervised_nt))
    }
