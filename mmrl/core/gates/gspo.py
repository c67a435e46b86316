"""GSPO: one ratio per row, the geometric mean over its decisions (arXiv 2507.18071)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmrl.core.gates.ppo_clip import clipped_surrogate
from mmrl.core.ratios import CLAMP, at_level, clamped, factor, masked_difference
from mmrl.core.registry import stage

LOG_RATIO_CAP = 10.0


@stage(
    "gate", "gspo", scope="row", units=("decision", "row"), unit_reason="a mean over steps of mean log-probs is tiny"
)
def gspo(
    *,
    logp_nt: Tensor,
    old_logp_nt: Tensor,
    adv_nt: Tensor,
    mask_nt: Tensor,
    segments: dict[str, Tensor] | None = None,
    eps_low_nt: Tensor | float = 3e-4,
    eps_high_nt: Tensor | float = 4e-4,
    form: Literal["token", "sequence"] = "token",
    level: str = "row",
    dual_clip: float | None = None,
) -> dict[str, Tensor]:
    """loss = -min(s A, clip(s, 1 - eps_low, 1 + eps_high) A), s = exp(mean over the row of logp - old_logp). All [N,T].

    form `token` (GSPO-token): s_t = sg[s] exp(logp - sg[logp]), so A may differ between decisions. form `sequence`:
    s differentiated directly; the same gradient under seq-mean-token-mean when A is constant on the row.
    log s is clamped to [-20, 10]. Reduce with seq-mean-token-mean. Detached: old_logp, A, widths.
    Reduces to: PPO clip when rows have one decision.
    """
    diff = masked_difference(logp_nt, old_logp_nt, mask_nt)
    log_s = at_level(diff, mask_nt, level, segments)
    if form == "token":
        own = masked_difference(logp_nt, logp_nt.detach(), mask_nt)  # value 0, gradient of logp
        log_s = own + log_s.detach()
    elif form != "sequence":
        raise ValueError(f"form must be 'token' or 'sequence', got {form!r}")
    s_nt = clamped(log_s, -CLAMP, LOG_RATIO_CAP).exp()
    return clipped_surrogate(s_nt, factor(adv_nt, mask_nt), eps_low_nt, eps_high_nt, dual_clip=dual_clip)
