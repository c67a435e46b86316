"""KL to the reference policy: the estimators k1, k2, k3 and k3+ (Schulman's notation), d = ref_logp - logp."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.core.ratios import clamped, masked_difference
from mmrl.core.registry import stage

Estimator = Literal["k1", "k2", "k3", "k3+"]


def kl_estimate(
    *,
    logp_nt: Tensor,
    ref_logp_nt: Tensor,
    mask_nt: Tensor,
    estimator: Estimator = "k3",
    max_value: float | None = None,
) -> Tensor:
    """Per-decision estimate, 0 where masked. [N,T], gradient through logp.

    k1 = -d (as a loss its expected gradient on-policy is 0; meant for rewards). k2 = d^2/2 (gradient of the reverse KL
    on-policy). k3 = exp(d) - d - 1 (never negative; GRPO's). k3+ = value of k3, gradient of k2. d is clamped to
    [-20, 20]; max_value clamps the result to [-max_value, max_value] (verl: 10).
    """
    d = clamped(-masked_difference(logp_nt, ref_logp_nt, mask_nt))
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
    return k if max_value is None else k.clamp(-max_value, max_value)


@stage("penalty", "kl", instead={"ref_logp_nt": "kl_nt"}, when={"old_logp_nt": "off_policy"})
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
) -> Tensor:
    """The KL term of GRPO, per decision. [N,T]. Detached: ref_logp, old_logp.

    A family's closed form `kl_nt` is preferred to any estimator. off_policy multiplies by rho = exp(logp - old_logp),
    gradient included (DeepSeek-V3.2; TRL `use_bias_correction_kl`).
    """
    if kl_nt is not None:
        k = torch.where(mask_nt.bool(), kl_nt, torch.zeros_like(kl_nt))
    else:
        k = kl_estimate(
            logp_nt=logp_nt, ref_logp_nt=ref_logp_nt, mask_nt=mask_nt, estimator=estimator, max_value=max_value
        )
    if off_policy:
        if old_logp_nt is None:
            raise ValueError("kl with off_policy needs old_logp_nt")
        k = k * clamped(masked_difference(logp_nt, old_logp_nt, mask_nt)).exp()
    return k
