"""CISPO: the clipped ratio as a detached weight; every decision keeps its gradient (MiniMax-M1, arXiv 2506.13585)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.core.ratios import at_level, clamped, factor, limit, masked_difference
from mmrl.core.registry import stage


@stage(
    "gate",
    "cispo",
    units=("decision", "element-mean"),
    unit_reason="single decisions of an ELBO have no likelihood of their own; use a gate on the row (gspo)",
)
def cispo(
    *,
    logp_nt: Tensor,
    old_logp_nt: Tensor,
    adv_nt: Tensor,
    mask_nt: Tensor,
    segments: dict[str, Tensor] | None = None,
    eps_low_nt: Tensor | float | None = None,
    eps_high_nt: Tensor | float = 0.28,
    bound: Literal["offset", "cap"] = "offset",
    level: str = "decision",
) -> dict[str, Tensor]:
    """loss = -sg[clip(rho, 1 - eps_low, 1 + eps_high)] A logp. All [N,T].

    bound `offset`: widths around 1 (verl); `cap`: eps_high itself is the largest ratio (TRL, recommended 5.0) and
    eps_low, if given, the smallest. eps_low None: no lower bound (the paper tunes only the upper one).
    Detached: rho, A, old_logp. Reduces to: REINFORCE's gradient at rho = 1.
    """
    mask = mask_nt.bool()
    diff = at_level(masked_difference(logp_nt.detach(), old_logp_nt, mask_nt), mask_nt, level, segments)
    ratio = clamped(diff).exp()
    if bound not in ("offset", "cap"):
        raise ValueError(f"bound must be 'offset' or 'cap', got {bound!r}")
    if bound == "cap" and not isinstance(eps_high_nt, Tensor) and eps_high_nt < 1:
        raise ValueError(f"with bound 'cap' the high width is the largest ratio itself, at least 1; got {eps_high_nt}")
    high = limit(1 + eps_high_nt if bound == "offset" else eps_high_nt, ratio)
    weight = torch.minimum(ratio, high)
    clip_low = torch.zeros_like(ratio)
    if eps_low_nt is not None:
        low = limit(1 - eps_low_nt if bound == "offset" else eps_low_nt, ratio)
        weight = torch.maximum(weight, low)
        clip_low = (ratio < low).to(ratio.dtype)
    logp = torch.where(mask, logp_nt, torch.zeros_like(logp_nt))
    return {
        "loss_nt": -weight * factor(adv_nt, mask_nt) * logp,
        "ratio_nt": ratio,
        "clip_low_nt": clip_low,
        "clip_high_nt": (ratio > high).to(ratio.dtype),
    }
