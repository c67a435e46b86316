"""Two passes over the same step: closed-form KL of their Gaussians, and GRPO-Guard's corrected ratio."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from image_gen.flow.steps import Transition, row_mean
from mmrl.core.ratios import clamped

KlForm = Literal["code", "exact"]


def gaussian_kl(*, step: Transition, ref_mean_n: Tensor, kl_form: KlForm = "code") -> Tensor:
    """MEAN over the elements of the KL between two Gaussians of equal deviation. [N, ...] -> [N]

    code    (mean - ref)^2 / (2 sigma_t^2): as Flow-GRPO's published code has it, WITHOUT the factor -dt; the betas of
            the recipes are tuned to it.
    exact   (mean - ref)^2 / (2 std^2), std^2 = sigma_t^2 (-dt).

    They are the same for cps, whose sigma_t is its std. Gradient through the step's mean. Detached: ref_mean_n.
    Raises ValueError where the deviation is 0.
    """
    if kl_form not in ("code", "exact"):
        raise ValueError(f"kl_form must be code or exact, got {kl_form!r}")
    if not step.has_density:
        raise ValueError("a step without noise has no KL: take a stochastic rule with noise above 0")
    scale_n = step.diffusion_n if kl_form == "code" else step.std_n
    return row_mean((_apart(step, ref_mean_n) / scale_n).square()) / 2


def _apart(step: Transition, other_mean_n: Tensor) -> Tensor:
    if other_mean_n.shape != step.mean_n.shape:
        raise ValueError(f"the means must have one shape; got {list(step.mean_n.shape)}, {list(other_mean_n.shape)}")
    return step.mean_n - other_mean_n.detach().to(step.mean_n)


def corrected(*, log_ratio: Tensor, mean_gap: Tensor, scale: Tensor) -> Tensor:
    """GRPO-Guard (arXiv 2510.22319): (log_ratio + mean_gap / (2 scale^2)) * scale, any shape.

    log_ratio: logp - old_logp, of Gaussian log-probs that are means over elements; mean_gap: MEAN (mean - old_mean)^2;
    scale: the step's deviation, sigma_t sqrt(-dt). The second term undoes the drift of the log-ratio below 0 that grows
    where the noise is small. Gradient through both. Detached: scale.
    """
    scale = scale.detach()
    return (log_ratio + mean_gap / (2 * scale.square())) * scale


def guard_scale(*, step: Transition) -> Tensor:
    """mean(sigma_t) * mean(sqrt(-dt)): one number for the step, detached. []"""
    return (step.diffusion_n.mean() * (-step.dt_n).sqrt().mean()).detach()


def guard_log_ratio(*, step: Transition, old_mean_n: Tensor, logp_n: Tensor, old_logp_n: Tensor) -> Tensor:
    """`corrected` for a step: the log-ratio of its two passes, [N].

    Gradient through logp and through the distance of the means. Detached: old_mean_n (kept from the rollout),
    old_logp_n. For rules whose log-prob is Gaussian only; raises ValueError for cps and where the step has no noise.
    """
    if step.rule.plain_square:
        raise ValueError("GRPO-Guard corrects a Gaussian log-probability; cps drops its factor: use sde or dance")
    if not step.has_density:
        raise ValueError("GRPO-Guard needs a stochastic step: noise above 0")
    gap_n = row_mean(_apart(step, old_mean_n).square())
    return corrected(log_ratio=logp_n - old_logp_n.detach(), mean_gap=gap_n, scale=guard_scale(step=step))


def guard_ratio(*, step: Transition, old_mean_n: Tensor, logp_n: Tensor, old_logp_n: Tensor) -> Tensor:
    """exp of `guard_log_ratio`, clamped to [-20, 20] before; exactly 1 where the passes agree. [N]"""
    return torch.exp(clamped(guard_log_ratio(step=step, old_mean_n=old_mean_n, logp_n=logp_n, old_logp_n=old_logp_n)))


def guard_weight(*, step: Transition) -> Tensor:
    """1 / mean(sqrt(-dt))^2: GRPO-Guard's factor on the step's loss, so that every step weighs alike; detached. []"""
    return 1 / (-step.dt_n).sqrt().mean().square().detach()
