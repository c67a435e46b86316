"""The exact ELBO of a scorer by enumeration of all masks, for a handful of positions; what estimators are judged by.

A scorer is any function masks bool [m, L] -> log-probabilities [m, L] of one completion under each mask; what it gives
where nothing is masked is not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Scorer = Callable[[Tensor], Tensor]
LONGEST = 16


def all_masks(length: int) -> Tensor:
    """Every mask of `length` positions but the empty one; bool [2^L - 1, L]."""
    if not 0 <= length <= LONGEST:
        raise ValueError(f"length must be from 0 to {LONGEST}, got {length}")
    number = torch.arange(1, 2**length)
    return (number[:, None] >> torch.arange(length)) % 2 == 1


def continuous_weights(masks_ml: Tensor) -> Tensor:
    """Integral over t of (1/t) P(mask | t), masks of independent positions: B(k, L - k + 1); float64 [m]."""
    length, count_m = masks_ml.shape[1], masks_ml.sum(dim=1).double()
    return torch.exp(torch.lgamma(count_m) + torch.lgamma(length - count_m + 1) - math.lgamma(length + 1))


def discrete_weights(masks_ml: Tensor) -> Tensor:
    """(1/L) (L/k) / C(L, k): k uniform over 1 .. L, then a mask of k positions; float64 [m]."""
    length = masks_ml.shape[1]
    by_count = [0.0] + [1 / (k * math.comb(length, k)) for k in range(1, length + 1)]
    return torch.tensor(by_count, dtype=torch.float64)[masks_ml.sum(dim=1)]


def masked_sums(scorer: Scorer, masks_ml: Tensor) -> Tensor:
    """Sum of the log-probabilities of what is masked, for each mask; float64 [m]."""
    logp_ml = scorer(masks_ml).double()
    return torch.where(masks_ml, logp_ml, torch.zeros_like(logp_ml)).sum(dim=1)


def elbo(scorer: Scorer, length: int) -> float:
    """The ELBO; the weights of the continuous and of the discrete form are the same numbers."""
    masks_ml = all_masks(length)
    return float((discrete_weights(masks_ml) * masked_sums(scorer, masks_ml)).sum())


def node_values(scorer: Scorer, length: int) -> Tensor:
    """Mean over all masks of k positions of the sum over the masked, k = 1 .. L; float64 [L].

    ELBO = sum over k of node_values[k - 1] / k.
    """
    masks_ml = all_masks(length)
    sums_m, count_m = masked_sums(scorer, masks_ml), masks_ml.sum(dim=1) - 1
    total = torch.zeros(length, dtype=torch.float64).scatter_add(0, count_m, sums_m)
    return total / torch.bincount(count_m, minlength=length).clamp(min=1)
