"""Raw schedule actions: the values they stand for, and how likely they are. Pure, any float dtype.

RECONSTRUCTION after AdaNAT (arXiv 2409.00342) and, for the smoothing, AdaGen (2603.06993). Axes: n rows, T steps,
V = 4 variables in the order of `targets.VARIABLES`.

    u ~ N(mean, deviation^2)       the raw action, which is stored and scored
    d_t = s d_{t-1} + (1 - s) u_t  its smoothed offset from the hand-made schedule, d_0 = u_0; s = 0: d = u
    ratio = sigmoid(b + d), the temperatures softplus(b + d), guidance = w_base softplus(b + d)
    b = the inverse activation of the hand-made value, so that d = 0 gives this value
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from image_gen.masked.schedule.targets import GUIDANCE, MAX_GUIDANCE, RATIO, SAMPLE

#: The sample temperature divides logits.
MIN_SAMPLE = 1e-3
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def inverse_activation(base_tv: Tensor, *, guidance_base: float = 1.0) -> Tensor:
    """b [..., V] of values [..., V]: ln(r / (1 - r)) for the ratio, x + ln(1 - exp(-x)) for the others.

    guidance_base   w_base: the target of the guidance is base / w_base.
    A value of exactly 0 gives -inf (a ratio of 1: inf): no finite action moves it.
    """
    x = _softplus_targets(base_tv, guidance_base)
    inverse = x + torch.log(-torch.expm1(-x))
    return torch.cat([torch.logit(base_tv[..., : RATIO + 1]), inverse[..., RATIO + 1 :]], dim=-1)


def values(*, offset_nv: Tensor, base_v: Tensor, guidance_base: float = 1.0) -> Tensor:
    """Values [..., V] in the dtype of the offsets [..., V], around base values that broadcast to them. No gradient.

    An offset of exactly 0 returns the base value bit for bit (in that dtype). Elsewhere the sample temperature is at
    least 1e-3 and the guidance in [0, 30]; a re-mask temperature of 0 is allowed. Finite for every finite offset.
    """
    offset_nv = offset_nv.detach()
    base_nv = base_v.detach().to(offset_nv).expand_as(offset_nv)
    a_nv = inverse_activation(base_nv, guidance_base=guidance_base) + offset_nv
    moved_nv = torch.logaddexp(a_nv, torch.zeros_like(a_nv))
    moved_nv[..., RATIO] = torch.sigmoid(a_nv[..., RATIO])
    moved_nv[..., SAMPLE].clamp_(min=MIN_SAMPLE)
    moved_nv[..., GUIDANCE] = (guidance_base * moved_nv[..., GUIDANCE]).clamp(0, MAX_GUIDANCE)
    return torch.where(offset_nv == 0, base_nv, moved_nv)


def _softplus_targets(base_tv: Tensor, guidance_base: float) -> Tensor:
    scale_v = base_tv.new_ones(base_tv.shape[-1])
    scale_v[GUIDANCE] = guidance_base or 1.0  # w_base 0 has base values of 0, which stay 0
    return base_tv / scale_v


def smoothed(*, raw_nv: Tensor, previous_nv: Tensor | None, smooth: float) -> Tensor:
    """The offset d_t [..., V] of a step from its raw action and the step before's offset (None: the first step).

    The same as smoothing a = b + d over the steps with increments of b that cancel, but a run of zeros stays exactly 0.
    Detached: previous_nv. smooth in [0, 1); 0 returns the raw action.
    """
    if previous_nv is None or smooth == 0:
        return raw_nv
    return smooth * previous_nv.detach() + (1 - smooth) * raw_nv


def log_prob(*, raw_nv: Tensor, mean_nv: Tensor, deviation_v: Tensor, learned_v: Tensor) -> Tensor:
    """ln N(raw; mean, deviation^2), summed over the learned variables. [..., V] -> [...]

    On the raw action, without the Jacobian of the activation, which cancels in every ratio. Gradient to mean and
    deviation. Detached: raw_nv. Columns that are not learned have no influence, whatever they hold.
    """
    if raw_nv.shape != mean_nv.shape:
        raise ValueError(f"actions and means must have one shape; got {list(raw_nv.shape)}, {list(mean_nv.shape)}")
    zero = torch.zeros_like(mean_nv)
    distance_nv = torch.where(learned_v, (raw_nv.detach() - mean_nv) / deviation_v, zero)
    density_nv = -0.5 * distance_nv.square() - deviation_v.log() - _HALF_LOG_2PI
    return torch.where(learned_v, density_nv, zero).sum(-1)


def gaussian_kl(*, mean_nv: Tensor, deviation_v: Tensor, first_deviation_v: Tensor, learned_v: Tensor) -> Tensor:
    """KL(N(mean, deviation^2) || N(0, first_deviation^2)), summed over the learned variables. [..., V] -> [...]

    The distance to the hand-made schedule: 0 at mean 0 and the first deviation. Gradient to mean and deviation;
    detached: first_deviation_v.
    """
    first_v = first_deviation_v.detach()
    shape = deviation_v.square() + mean_nv.square()
    kl_nv = (first_v / deviation_v).log() + shape / (2 * first_v.square()) - 0.5
    return torch.where(learned_v, kl_nv, torch.zeros_like(kl_nv)).sum(-1)


def entropy(*, deviation_v: Tensor, learned_v: Tensor) -> Tensor:
    """Entropy of one action in nats: sum of ln deviation + (1 + ln 2 pi) / 2 over the learned variables.

    [..., V] -> [...], with gradient to a learned deviation."""
    each_v = deviation_v.log() + _HALF_LOG_2PI + 0.5
    return torch.where(learned_v, each_v, torch.zeros_like(each_v)).sum(-1)
