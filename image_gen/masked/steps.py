"""One decoding step of a masked canvas as pure functions: guidance, token likelihood, draw, confidence, re-masking.

MaskGIT (arXiv 2202.04200) and Muse (2301.00704) as in aMUSEd (2401.01808; diffusers' AmusedScheduler); the likelihood
of Co-GRPO (2512.22288). Axes: n rows, l positions, k ids of the codebook. float32 or float64, on any device; logits in
half precision are computed in float32. A value of axis n belongs to the first axis of what it is applied to, so that
functions of [n, l, k] also take [p, k], positions of any rows, with a value for each position. Nothing is detached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Sample temperatures are not taken lower: logits divided by less leave float32's range of use.
COLDEST = 1e-3
#: Probabilities and uniform numbers are not taken smaller before a logarithm.
TINY = 1e-20


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.to(torch.float32)


def _each(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A value a row beside a tensor whose first axis is the rows."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def guided_logits(cond_nlk: Tensor, uncond_nlk: Tensor | None, guidance_n: float | Tensor) -> Tensor:
    """l_u + w (l_c - l_u): w = 1 is the conditional half, 0 the unconditional one. Same shape as cond_nlk.

    uncond_nlk None: the caller knows that w is 1, and only the conditional half was computed.
    """
    cond = _precise(cond_nlk)
    if uncond_nlk is None:
        return cond
    uncond = _precise(uncond_nlk)
    return uncond + _each(guidance_n, cond) * (cond - uncond)


def token_log_probs(guided_nlk: Tensor, temperature_n: float | Tensor) -> Tensor:
    """What ids are drawn from: log softmax(l / max(tau_s, 1e-3)) over the codebook; same shape.

    Ids beyond the codebook must have been cut off. Where a logit is NaN or +inf every id of the position is NaN; an id
    at -inf is never drawn.
    """
    logits = _precise(guided_nlk)
    temperature = _each(temperature_n, logits)
    warm = temperature.clamp(min=COLDEST) if isinstance(temperature, Tensor) else max(temperature, COLDEST)
    return torch.log_softmax(logits / warm, dim=-1)


def picked(logp_nlk: Tensor, ids_nl: Tensor) -> Tensor:
    """Log-probabilities of these ids, [n, l]."""
    return logp_nlk.gather(-1, ids_nl.unsqueeze(-1)).squeeze(-1)


def uniforms(generators: Sequence[torch.Generator], length: int) -> Tensor:
    """The next `length` numbers of each row's own generator, float64 [n, length] in [0, 1), on the CPU."""
    return torch.stack([torch.rand(length, dtype=torch.float64, generator=g) for g in generators])


def draw_ids(logp_nlk: Tensor, uniform_nl: Tensor) -> Tensor:
    """One id a position from Categorical(exp logp), int64 [n, l]: the first whose cumulative probability exceeds the
    position's uniform number. An id of probability 0 is never drawn.

    One number a position, where Gumbel-max takes one for each id. Sums run in float64: in float32 the tail of a large
    codebook is lost. Where a log-probability is NaN the id means nothing, but it is one of the codebook.
    """
    cdf = logp_nlk.exp().cumsum(dim=-1, dtype=torch.float64)
    # u <= 1 - 2**-53, so u * total rounds below total: the last id that is possible at all is the last one drawn
    at = (uniform_nl * cdf[..., -1]).unsqueeze(-1)
    return torch.searchsorted(cdf, at, right=True).squeeze(-1).clamp(max=logp_nlk.shape[-1] - 1)


def gumbel(uniform_nl: Tensor) -> Tensor:
    """-ln(-ln u), the arguments of both logarithms at least 1e-20. Same shape and dtype."""
    return -(-uniform_nl.clamp(min=TINY).log()).clamp(min=TINY).log()


def confidence(logp_nl: Tensor, gumbel_nl: Tensor, *, temperature_n: float | Tensor, known_nl: Tensor) -> Tensor:
    """ln max(p, 1e-20) + tau_r g, and +inf at positions that were known before the step; [n, l].

    logp_nl: of the ids just drawn, under the logits as sampled from (tempered) or at temperature 1 (untempered).
    AmusedScheduler gives known positions the logarithm of float32's largest number, 88.7, before the noise: the same
    choice unless tau_r is large enough for noise to reach that, where it would take known tokens back.
    """
    noise = _each(temperature_n, logp_nl) * gumbel_nl.to(logp_nl.dtype)
    return torch.where(known_nl, math.inf, logp_nl.clamp(min=math.log(TINY)) + noise)


def masks_left(ratio_n: Tensor, *, length: int, open_n: Tensor, last: bool) -> Tensor:
    """Positions that stay masked after a step, int64 [n]: floor(L r), then at most open_n - 1, then at least 1.

    0 at the last step, and in a row where nothing is open. float32 arithmetic as in AmusedScheduler, whose order of
    the two limits it keeps: a single open position stays open until the last step. The share counts from all L
    positions, given ones included. Ratios must be finite.
    """
    share_n = (length * ratio_n.to(torch.float32)).floor()
    left_n = torch.minimum(share_n, open_n.to(torch.float32) - 1).clamp(min=1).to(torch.int64)
    return torch.zeros_like(left_n) if last else torch.where(open_n > 0, left_n, 0)


def remasked(confidence_nl: Tensor, left_n: Tensor) -> Tensor:
    """Positions that become masks again, bool [n, l]: those strictly below the left_n-th smallest confidence, counted
    from 0. left_n of them without ties, fewer with ties at the cut-off; none where left_n is 0."""
    # beyond the last position everything is below: a canvas of one position can be held open
    end = torch.full_like(confidence_nl[:, :1], math.inf)
    cut = torch.cat([confidence_nl.sort(dim=1).values, end], dim=1).gather(1, left_n[:, None])
    return confidence_nl < cut


def step_log_prob(logp_nl: Tensor, filled_nl: Tensor) -> Tensor:
    """lp = sum of log p over the positions that the step filled and kept, [n]; 0 for a step that filled nothing."""
    return torch.where(filled_nl, logp_nl, 0.0).sum(dim=1)
