"""From logits to tokens: the top-k / top-p cut and the draw. Axes: m positions, v vocabulary.

The draw inverts the cumulative distribution at one uniform number a position. It is the distribution of Gumbel-max,
argmax(logits / T - log(-log u)), at one random number instead of a vocabulary of them: with 126,464 tokens and a
generator on the CPU the numbers of Gumbel-max would cost more than the model. The sum runs in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def allowed(logits_mv: Tensor, *, top_p: float, top_k: int) -> Tensor:
    """Bool [m, v]: first the `top_k` most likely ids (0 = all), then the fewest whose share reaches `top_p`.

    The most likely one always stays, an id at -inf never does; ties go to the lower id.
    """
    ordered, order = logits_mv.sort(dim=-1, descending=True, stable=True)
    keep = torch.isfinite(ordered)
    if top_k:
        keep[:, top_k:] = False
    if top_p < 1.0:
        share = torch.softmax(ordered.masked_fill(~keep, float("-inf")), -1)
        keep &= share.cumsum(-1) - share < top_p
    keep[:, 0] = True
    return torch.zeros_like(keep).scatter(1, order, keep)


def pick(logits_mv: Tensor, uniform_m: Tensor) -> Tensor:
    """One id a position, int64 [m]: the first whose cumulative probability exceeds `uniform_m` (float64, in [0, 1)).

    Where a logit is NaN the id means nothing, but it is one of the vocabulary: who calls looks at its log-probability.
    """
    cdf = torch.softmax(logits_mv, -1).cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1]
    # rounding up to the total itself would run past the last possible token
    at = torch.minimum(uniform_m * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, at[:, None], right=True)[:, 0].clamp(max=logits_mv.shape[1] - 1)
