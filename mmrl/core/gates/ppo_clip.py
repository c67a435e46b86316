"""The clipped surrogate of PPO and GRPO, with asymmetric widths (DAPO, arXiv 2503.14476) and dual clip (1912.09729)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.core.ratios import CLAMP, at_level, clamped, factor, limit, masked_difference
from mmrl.core.registry import stage


def clipped_surrogate(
    ratio_nt: Tensor,
    adv_nt: Tensor,
    eps_low_nt: Tensor | float,
    eps_high_nt: Tensor | float,
    *,
    dual_clip: float | None = None,
    delta: float | None = None,
) -> dict[str, Tensor]:
    """-min(rho A, clip(rho, 1-low, 1+high) A) and which decisions were clipped. All [N,T]."""
    low, high = limit(1 - eps_low_nt, ratio_nt), limit(1 + eps_high_nt, ratio_nt)
    free = ratio_nt if delta is None else ratio_nt.clamp(max=delta)
    inside = torch.maximum(torch.minimum(ratio_nt, high), low)
    loss = -torch.minimum(free * adv_nt, inside * adv_nt)
    if dual_clip is not None:
        if dual_clip <= 1:
            raise ValueError(f"dual_clip must be above 1, got {dual_clip}")
        loss = torch.where(adv_nt < 0, torch.minimum(loss, -dual_clip * adv_nt), loss)
    ratio = ratio_nt.detach()
    return {
        "loss_nt": loss,
        "ratio_nt": ratio,
        "clip_low_nt": ((ratio < low) & (adv_nt < 0)).to(ratio.dtype),
        "clip_high_nt": ((ratio > high) & (adv_nt > 0)).to(ratio.dtype),
    }


@stage(
    "gate",
    "ppo-clip",
    units=("decision", "element-mean"),
    unit_reason="single decisions of an ELBO have no likelihood of their own; use a gate on the row (gspo)",
)
def ppo_clip(
    *,
    logp_nt: Tensor,
    old_logp_nt: Tensor,
    adv_nt: Tensor,
    mask_nt: Tensor,
    segments: dict[str, Tensor] | None = None,
    eps_low_nt: Tensor | float = 0.2,
    eps_high_nt: Tensor | float = 0.2,
    dual_clip: float | None = None,
    delta: float | None = None,
    adv_clip: float | None = None,
    level: str = "decision",
    cap_low: float = -CLAMP,
    cap_high: float = CLAMP,
) -> dict[str, Tensor]:
    """loss = -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A), rho = exp(logp - old_logp). All [N,T].

    Detached: old_logp, A, the widths. Widths are numbers or [N,T] tables. dual_clip c (verl: 3): where A < 0 the loss
    is at most -c A. delta (TRL): rho is capped at delta in the unclipped branch. adv_clip: A is clamped to +-adv_clip
    first (Flow-GRPO: 5). level: decision, row, row-sum, segment:<name> or segment-sum:<name> (`ratios.at_level`).
    cap_low, cap_high: limits of log rho (LightningRL: +-10). Gradient is zero where A > 0 and rho > 1 + eps_high, or
    A < 0 and rho < 1 - eps_low. Reduces to: REINFORCE's gradient at rho = 1.
    """
    log_ratio = at_level(masked_difference(logp_nt, old_logp_nt, mask_nt), mask_nt, level, segments)
    adv_nt = factor(adv_nt, mask_nt, adv_clip=adv_clip)
    ratio_nt = clamped(log_ratio, cap_low, cap_high).exp()
    return clipped_surrogate(ratio_nt, adv_nt, eps_low_nt, eps_high_nt, dual_clip=dual_clip, delta=delta)
