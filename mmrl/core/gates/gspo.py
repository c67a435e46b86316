"""GSPO: one ratio per row, the geometric mean over its decisions (arXiv 2507.18071)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmrl.core.gates.ppo_clip import clipped_surrogate
from mmrl.core.ratios import CLAMP, at_level, clamped, factor, level_length, masked_difference
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
    loss_norm: Literal["none", "length"] = "none",
    cap_low: float = -CLAMP,
    cap_high: float = LOG_RATIO_CAP,
    dual_clip: float | None = None,
) -> dict[str, Tensor]:
    """loss = -min(s A, clip(s, 1 - eps_low, 1 + eps_high) A), s = exp(mean over the row of logp - old_logp). All [N,T].

    form `token` (GSPO-token): s_t = sg[s] exp(logp - sg[logp]), so A may differ between decisions. form `sequence`:
    s differentiated directly; the same gradient under seq-mean-token-mean when A is constant on the row.
    log s is clamped to [cap_low, cap_high]. Reduce with seq-mean-token-mean. Detached: old_logp, A, widths.
    level `row-sum`: s = exp(sum over the row), the ratio of whole likelihoods; segment:<name>, segment-sum:<name>: the
    same of a segment. loss_norm `length`: the loss of a row is divided by its decisions; row-sum with length is the
    objective in the text of GDPO for diffusion language models (arXiv 2510.08554), level row with caps of 10 that of
    its code.
    Reduces to: PPO clip when rows have one decision.
    """
    diff = masked_difference(logp_nt, old_logp_nt, mask_nt)
    log_s = at_level(diff, mask_nt, level, segments)
    length_n1 = mask_nt.bool().sum(1, keepdim=True).clamp(min=1).to(diff.dtype)
    if form == "token":
        own = masked_difference(logp_nt, logp_nt.detach(), mask_nt)  # value 0, gradient of logp
        shared = level_length(mask_nt, segments=segments, level=level).to(diff.dtype)
        own = own * shared if "-sum" in level else own  # their mean then has the gradient of the sum
        log_s = own + log_s.detach()
    elif form != "sequence":
        raise ValueError(f"form must be 'token' or 'sequence', got {form!r}")
    s_nt = clamped(log_s, cap_low, cap_high).exp()
    out = clipped_surrogate(s_nt, factor(adv_nt, mask_nt), eps_low_nt, eps_high_nt, dual_clip=dual_clip)
    if loss_norm == "length":
        out["loss_nt"] = out["loss_nt"] / length_n1
    elif loss_norm != "none":
        raise ValueError(f"loss_norm must be 'none' or 'length', got {loss_norm!r}")
    return out
