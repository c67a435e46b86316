"""Which masked positions are filled first: the one with the highest key. Axes: m positions, v vocabulary.

The keys are those of one distribution (`Settings.confidence`) at each masked position:

    low_confidence  probability of the token that was drawn (what is least sure stays masked)
    entropy         minus the entropy
    margin          probability of the most likely token minus that of the second
    random          a uniform number
    sequential      from the left
"""

from __future__ import annotations

import torch
from torch import Tensor


def key(order: str, *, logp_mv: Tensor, confidence_m: Tensor, uniform_m: Tensor, column_m: Tensor) -> Tensor:
    """[m] of the arithmetic of `logp_mv`; `column_m` is the position's column, `uniform_m` its own random number."""
    if order == "low_confidence":
        return confidence_m
    if order == "random":
        return uniform_m.to(logp_mv)
    if order == "sequential":
        return -column_m.to(logp_mv)
    if order == "entropy":
        return (logp_mv.exp() * logp_mv.clamp(min=-1e20)).sum(-1)  # 0 * -inf would be NaN
    if order == "margin":
        best = logp_mv.topk(2, -1).values.exp()
        return best[:, 0] - best[:, 1]
    raise ValueError(f"order {order!r}: valid are low_confidence, random, entropy, margin, sequential")


def ranks(key_nb: Tensor, open_nb: Tensor) -> Tensor:
    """int64 [n, b]: 0 for the highest key among the open positions; ties go to the left, closed ones come last."""
    low = torch.finfo(key_nb.dtype).min
    sortable = key_nb.clamp(min=low).masked_fill(~open_nb, float("-inf"))
    order = sortable.argsort(dim=-1, descending=True, stable=True)
    return torch.empty_like(order).scatter(
        1, order, torch.arange(key_nb.shape[1], device=order.device).expand_as(order)
    )
