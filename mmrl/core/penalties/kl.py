"""KL to the reference or the old policy: estimators k1, k2, k3 and k3+ (Schulman's notation), d = ref_logp - logp."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.core.ratios import CLAMP, at_level, clamped, masked_difference
from mmrl.core.registry import stage

Estimator = Literal["k1", "k2", "k3", "k3+"]
Level = Literal["decision", "row", "row-sum"]
LEVELS = ("decision", "row", "row-sum")
NOT_ALONE = "only the row's sum has a meaning; set level: row (per decision) or row-sum (of the whole)"


def kl_estimate(
    *,
    logp_nt: Tensor,
    ref_logp_nt: Tensor,
    mask_nt: Tensor,
    estimator: Estimator = "k3",
    max_value: float | None = None,
    cap: float = CLAMP,
    level: Level = "decision",
) -> Tensor:
    """Per-decision estimate, 0 where masked. [N,T], gradient through logp.

    k1 = -d (as a loss its expected gradient on-policy is 0; meant for rewards). k2 = d^2/2 (gradient of the reverse KL
    on-policy). k3 = exp(d) - d - 1 (never negative; GRPO's). k3+ = value of k3, gradient of k2. d is clamped to
    [-cap, cap] (TW-GRPO: 11); max_value clamps the result to [-max_value, max_value] (verl: 10). level: d of the
    decision, or on every valid decision the mean (`row`) or the sum (`row-sum`) of its row; with seq-mean-token-mean a
    row then counts once.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    d = clamped(at_level(-masked_difference(logp_nt, ref_logp_nt, mask_nt), mask_nt, level), -cap, cap)
    if estimator == "k1":
        k = -d
    elif estimator == "k2":
        k = d.square() / 2
    elif estimator == "k3":
        k = torch.expm1(d) - d
    elif estimator == "k3+":
        k2 = d.square() / 2
        k = k2 - k2.detach() + (torch.expm1(d) - d).detach()
    else:
        raise ValueError(f"estimator must be k1, k2, k3 or k3+, got {estimator!r}")
    k = k if level == "decision" else torch.where(mask_nt.bool(), k, torch.zeros_like(k))
    return k if max_value is None else k.clamp(-max_value, max_value)


@stage(
    *("penalty", "kl"),
    instead={"ref_logp_nt": "kl_nt"},
    when={"old_logp_nt": "off_policy"},
    unit_reason=NOT_ALONE,
)
def kl(
    *,
    logp_nt: Tensor,
    ref_logp_nt: Tensor,
    mask_nt: Tensor,
    old_logp_nt: Tensor | None = None,
    kl_nt: Tensor | None = None,
    estimator: Estimator = "k3",
    off_policy: bool = False,
    max_value: float | None = None,
    cap: float = CLAMP,
    level: Level = "decision",
) -> Tensor:
    """The KL term of GRPO, per decision. [N,T]. Detached: ref_logp, old_logp.

    A family's closed form `kl_nt` is preferred to any estimator. off_policy multiplies by rho = exp(logp - old_logp),
    gradient included (DeepSeek-V3.2; TRL `use_bias_correction_kl`). level: decision, row (mean) or row-sum, for
    difference, closed form and rho alike: k3 on row-sum is GDPO's (arXiv 2510.08554), k2 on row that of ESPO
    (2512.03759) up to its division by the length.
    """
    if kl_nt is not None:
        k = at_level(torch.where(mask_nt.bool(), kl_nt, torch.zeros_like(kl_nt)), mask_nt, level)
        k = k if level == "decision" else torch.where(mask_nt.bool(), k, torch.zeros_like(k))
    else:
        own = {"estimator": estimator, "max_value": max_value, "cap": cap, "level": level}
        k = kl_estimate(logp_nt=logp_nt, ref_logp_nt=ref_logp_nt, mask_nt=mask_nt, **own)  # type: ignore[arg-type]
    if off_policy:
        if old_logp_nt is None:
            raise ValueError("kl with off_policy needs old_logp_nt")
        log_rho = at_level(masked_difference(logp_nt, old_logp_nt, mask_nt), mask_nt, level)
        k = k * clamped(log_rho).exp()
    return k


@stage("penalty", "kl-old", unit_reason=NOT_ALONE)
def kl_old(
    *,
    logp_nt: Tensor,
    old_logp_nt: Tensor,
    mask_nt: Tensor,
    estimator: Estimator = "k3",
    max_value: float | None = None,
    cap: float = CLAMP,
    level: Level = "decision",
) -> Tensor:
    """KL to the policy that sampled, instead of the one of step 0: TraceRL (arXiv 2509.06949). [N,T].

    Detached: old_logp. Needs no reference pass. At the first update of a rollout value and gradient are 0 (k2, k3).
    """
    own = {"estimator": estimator, "max_value": max_value, "cap": cap, "level": level}
    return kl_estimate(logp_nt=logp_nt, ref_logp_nt=old_logp_nt, mask_nt=mask_nt, **own)  # type: ignore[arg-type]
