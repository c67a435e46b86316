"""REINFORCE++ and its baseline form: whitening over all decisions of the batch (arXiv 2501.03262)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.core.advantages.grpo import rewards_and_groups
from mmrl.core.groups import as_float
from mmrl.core.registry import stage

WHITEN_EPS = 1e-8  # inside the square root, as published


def masked_whiten(x_nt: Tensor, mask_nt: Tensor) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the masked entries, var unbiased; 0 elsewhere and when fewer than two.

    Summed in float64: where all entries are equal, a rounded mean would come out as an advantage (1e-4 is a low floor).
    """
    mask = mask_nt.bool()
    n = mask.sum()
    if n < 2:
        return torch.zeros_like(x_nt)
    kept = torch.where(mask, x_nt, torch.zeros_like(x_nt)).to(torch.float64)
    centred = torch.where(mask, kept - kept.sum() / n, torch.zeros_like(kept))
    return (centred / (centred.square().sum() / (n - 1) + WHITEN_EPS).sqrt()).to(x_nt.dtype)


def _reward_at_last(reward_n: Tensor, mask_nt: Tensor) -> Tensor:
    """The scalar reward on the last valid decision of each row, [N,T]."""
    positions = torch.arange(mask_nt.shape[1], device=mask_nt.device).expand_as(mask_nt)
    last_n = torch.where(mask_nt, positions, torch.full_like(positions, -1)).amax(1)
    return (positions == last_n[:, None]) * reward_n[:, None]


@stage(
    "advantage",
    "reinforce-pp",
    scope="batch",
    units=("decision",),
    unit_reason="it puts the reward on the last decision and sums returns over decisions",
    signal_without_variance=True,
    when={"old_logp_nt": "beta_kl", "ref_logp_nt": "beta_kl"},
)
def reinforce_pp(
    *,
    reward_n: Tensor,
    mask_nt: Tensor,
    old_logp_nt: Tensor | None = None,
    ref_logp_nt: Tensor | None = None,
    gamma: float = 1.0,
    beta_kl: float = 0.0,
) -> Tensor:
    """Per-decision returns, whitened over the batch. [N], [N,T] -> [N,T], detached.

    rtok = reward on the last valid decision minus beta_kl * (old_logp - ref_logp) on each; R_t = sum gamma^(t'-t) rtok;
    A = masked whitening of R over all valid decisions (unbiased variance, eps 1e-8 under the root). Rows without reward
    leave the statistics. beta_kl > 0 needs `old_logp_nt` and `ref_logp_nt`.
    Signal without variance: equal rewards still give non-zero advantages when lengths or KL differ.
    """
    reward_n = as_float(reward_n)
    valid_n = torch.isfinite(reward_n)
    mask = mask_nt.bool() & valid_n[:, None]
    rtok = _reward_at_last(torch.where(valid_n, reward_n, torch.zeros_like(reward_n)), mask)
    if beta_kl:
        if old_logp_nt is None or ref_logp_nt is None:
            raise ValueError("reinforce-pp with beta_kl needs old_logp_nt and ref_logp_nt")
        k1 = torch.where(mask, old_logp_nt - ref_logp_nt, torch.zeros_like(rtok)).to(rtok.dtype)
        rtok = rtok - beta_kl * k1
    ret, running = torch.zeros_like(rtok), torch.zeros_like(reward_n)
    for t in reversed(range(rtok.shape[1])):
        # a masked decision passes the running return on without discounting it
        running = torch.where(mask[:, t], rtok[:, t] + gamma * running, running)
        ret[:, t] = running
    return masked_whiten(ret, mask).detach()


@stage("advantage", "reinforce-pp-baseline", scope="batch", signal_without_variance=True, relative=True)
def reinforce_pp_baseline(*, reward_n: Tensor, mask_nt: Tensor, keys: dict[str, Tensor], key: str = "prompt") -> Tensor:
    """r_i - mean_g on every decision of row i, then whitened over all valid decisions of the batch. [N,T], detached.

    Long rows weigh more in the statistics. Signal without variance: the whitening subtracts a mean over decisions, so
    a flat group is shifted away from 0 when lengths differ.
    """
    reward_n, groups = rewards_and_groups(reward_n, keys[key])
    centred_n = reward_n - groups.mean(reward_n)
    centred_n = torch.where(groups.flat(reward_n), torch.zeros_like(centred_n), centred_n)
    mask = mask_nt.bool() & groups.valid_n[:, None]
    return masked_whiten(centred_n[:, None].expand(mask.shape).clone(), mask).detach()
