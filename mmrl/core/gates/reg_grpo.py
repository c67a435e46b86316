"""Reg-GRPO: the group's log-ratios are regressed onto its advantages (DeepVideo-R1, arXiv 2506.07464)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.core.groups import Groups
from mmrl.core.ratios import clamped, masked_difference, row_mean, row_sum
from mmrl.core.registry import stage


@stage(
    *("gate", "reg-grpo"),
    scope="group",
    units=("decision", "row"),
    unit_reason="the log-ratio of a sequence is a sum over decisions, and a sum of means over elements is none",
)
def reg_grpo(
    *,
    logp_nt: Tensor,
    old_logp_nt: Tensor,
    adv_nt: Tensor,
    mask_nt: Tensor,
    keys: dict[str, Tensor],
    reward_n: Tensor | None = None,
    s_min: float = 0.1,
    key: str = "prompt",
) -> dict[str, Tensor]:
    """loss of row i, on each of its decisions = (A_i - (rho_i - mean_g rho) / max(std_g rho, s_min))^2. [N,T]

    rho_i = sum over the row of logp - old_logp; A_i = the mean of its advantages (one number a row). Mean and
    population deviation are those of the group: of its rows with a decision and a reward. Gradient through rho, its
    mean and, above s_min, its deviation; it sums to 0 over the group. Detached: A, old_logp.
    Reduce with seq-mean-token-mean: each row then counts once. With advantages of mean 0 and population deviation 1 the
    loss lies in [0, 4] and is 2 (1 - correlation of A and rho) where the deviation is above s_min.
    s_min (not in the paper, which leaves the first update undefined): with rho = 0 everywhere the loss is mean A^2 and
    its gradient -2 (A_i - mean A) / (G s_min), a policy-gradient step. Groups of one, and groups whose advantages are
    all equal, have loss 0. There is no clip: learning rate and KL carry the stability.
    Raises ValueError for an s_min that is not above 0.
    """
    if not s_min > 0:
        raise ValueError(f"s_min must be above 0, got {s_min}")
    mask = mask_nt.bool()
    diff_nt = masked_difference(logp_nt, old_logp_nt, mask_nt)
    rho_n, adv_n = row_sum(diff_nt, mask_nt), row_mean(adv_nt.detach(), mask_nt)
    valid_n = mask.any(1) if reward_n is None else mask.any(1) & torch.isfinite(reward_n)
    groups = Groups(keys[key], valid_n)
    centred_n = rho_n - groups.mean(rho_n)
    variance_n = groups.mean(centred_n.square())
    spread = variance_n.detach() > s_min**2  # below it the root would have an infinite slope at 0
    std_n = torch.where(spread, torch.where(spread, variance_n, torch.ones_like(variance_n)).sqrt(), s_min)
    gap_n = (adv_n - centred_n / std_n).square()
    learns_n = valid_n & ~groups.flat(adv_n)
    loss_n = torch.where(learns_n, gap_n, torch.zeros_like(gap_n))
    return {
        "loss_nt": torch.where(mask, loss_n[:, None], torch.zeros_like(diff_nt)),
        "ratio_nt": clamped(diff_nt.detach()).exp(),
        "rho_std_nt": groups.mean(centred_n.detach().square()).sqrt()[:, None].expand(mask.shape),
    }
