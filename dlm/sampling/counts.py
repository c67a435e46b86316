"""How many positions one step fills. Axes: n rows, b columns of a block.

steps      a fixed budget: m masked positions over S steps are m // S each and one more in the first m % S.
threshold  every position whose confidence exceeds tau, but never fewer than the budget of that step (1 without one).
factor     the largest n with (n + 1)(1 - c_n) < f, c_n the lowest confidence of the first n; never fewer than 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def schedule(masked: int, steps: int) -> list[int]:
    """Positions filled by each step of a block; steps that would fill none are not run."""
    return [n for j in range(steps) if (n := masked // steps + (j < masked % steps))]


def budget(masked_n: Tensor, steps_n: Tensor, step: int) -> Tensor:
    """`schedule(masked, steps)[step]` for every row, at least 1: [n]."""
    return (masked_n // steps_n + (step < masked_n % steps_n).long()).clamp(min=1)


def block_steps(steps: int, masked: Sequence[int]) -> list[int]:
    """Steps of each block of a completion, in proportion to its masks; together `steps`, but at least 1 each.

    After a share x of all masks, ceil(steps * x) steps are through.
    """
    whole = sum(masked)
    through = [-(-steps * sum(masked[:k]) // whole) for k in range(len(masked) + 1)]
    return [max(1, after - before) for before, after in pairwise(through)]


def above(confidence_nb: Tensor, rank_nb: Tensor, open_nb: Tensor, *, threshold: float, floor_n: Tensor) -> Tensor:
    """Bool [n, b]: the open positions of confidence > threshold, or the `floor_n` first ones where these are fewer.

    A threshold of 0 takes everything whose confidence is a number, even one that rounded to 0.
    """
    high = confidence_nb > threshold if threshold > 0 else torch.isfinite(confidence_nb)
    high = high & open_nb
    enough = high.sum(-1) >= floor_n
    return torch.where(enough[:, None], high, (rank_nb < floor_n[:, None]) & open_nb)


def by_factor(confidence_nb: Tensor, rank_nb: Tensor, open_nb: Tensor, *, factor: float) -> Tensor:
    """Bool [n, b]: the first n positions by rank, n the largest with (n + 1)(1 - c_n) < factor, at least 1."""
    ordered = torch.empty_like(confidence_nb).scatter(1, rank_nb, confidence_nb)
    lowest = ordered.cummin(-1).values
    n = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
    there = n <= open_nb.sum(-1)[:, None]
    fits = ((n + 1) * (1 - lowest) < factor) & there
    count = torch.where(fits, n, torch.ones_like(n)).amax(-1)
    return (rank_nb < count[:, None]) & open_nb
