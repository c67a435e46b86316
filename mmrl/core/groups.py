"""Segment reductions over integer keys: the statistics of groups that may be ragged, scattered and partly invalid.

Axes: N rows, S distinct keys. Each statistic is returned per row ([N]), so callers never handle S.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Rewards closer than this are equal (all families, on raw rewards).
FLAT = 1e-8


def as_float(x: Tensor) -> Tensor:
    """float32 or better: half precision and integers go to float32, float64 stays."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _dense(key_n: Tensor) -> tuple[Tensor, int]:
    """Keys as small numbers from 0, and how many numbers there are (some may be unused).

    Keys that already lie close together, as trainers number them, need no sort: that is most of the cost.
    """
    if key_n.numel() == 0:
        return key_n.long(), 0
    low, high = int(key_n.min()), int(key_n.max())
    if high - low < 4 * key_n.numel():
        return key_n.long() - low, high - low + 1
    uniques, index_n = torch.unique(key_n, return_inverse=True)
    return index_n, int(uniques.numel())


class Groups:
    """Rows that share a key. Rows where `valid_n` is False belong to a group but leave every statistic."""

    def __init__(self, key_n: Tensor, valid_n: Tensor | None = None) -> None:
        if key_n.dim() != 1 or key_n.dtype.is_floating_point:
            raise ValueError(f"a key is int64 [N]; got {key_n.dtype} {list(key_n.shape)}")
        self.index_n, self.n_groups = _dense(key_n)
        self.valid_n = torch.ones_like(key_n, dtype=torch.bool) if valid_n is None else valid_n.bool()
        self._size_s = self._sum_s(self.valid_n.to(torch.float64))

    def _sum_s(self, x_n: Tensor) -> Tensor:
        return x_n.new_zeros(self.n_groups).index_add_(0, self.index_n, x_n)

    def _spread(self, x_s: Tensor) -> Tensor:
        return x_s[self.index_n]

    def _zeroed(self, x_n: Tensor) -> Tensor:
        return torch.where(self.valid_n, x_n, torch.zeros_like(x_n))

    def count(self) -> Tensor:
        """Valid rows of the group, int64 [N]."""
        return self._spread(self._size_s).long()

    def sum(self, x_n: Tensor) -> Tensor:
        return self._spread(self._sum_s(self._zeroed(x_n)))

    def mean(self, x_n: Tensor) -> Tensor:
        """0 where a group has no valid row."""
        return self.sum(x_n) / self._spread(self._size_s).clamp(min=1).to(x_n.dtype)

    def std(self, x_n: Tensor, *, ddof: int) -> Tensor:
        """Two-pass deviation; 0 where fewer than ddof + 1 valid rows."""
        centred = self._zeroed(x_n - self.mean(x_n))
        square_s = self._sum_s(centred * centred)
        free_s = (self._size_s - ddof).to(x_n.dtype)
        var_s = torch.where(free_s > 0, square_s / free_s.clamp(min=1), torch.zeros_like(square_s))
        return self._spread(var_s.sqrt())

    def leave_one_out(self, x_n: Tensor) -> Tensor:
        """Mean of the OTHER valid rows of the group; 0 where there is none."""
        others = (self._spread(self._size_s) - self.valid_n.to(torch.float64)).to(x_n.dtype)
        return (self.sum(x_n) - self._zeroed(x_n)) / others.clamp(min=1)

    def max(self, x_n: Tensor) -> Tensor:
        """-inf where a group has no valid row."""
        filled = torch.where(self.valid_n, x_n, torch.full_like(x_n, -torch.inf))
        start = x_n.new_full((self.n_groups,), -torch.inf)
        return self._spread(start.scatter_reduce(0, self.index_n, filled, "amax"))

    def min(self, x_n: Tensor) -> Tensor:
        """+inf where a group has no valid row."""
        return -self.max(-x_n)

    def rank(self, x_n: Tensor) -> Tensor:
        """0-based rank inside the group, ascending, ties in row order; -1 for invalid rows. int64 [N]."""
        filled = torch.where(self.valid_n, x_n, torch.full_like(x_n, torch.inf))
        by_value = torch.argsort(filled, stable=True)
        order = by_value[torch.argsort(self.index_n[by_value], stable=True)]
        full_s = torch.bincount(self.index_n, minlength=self.n_groups)
        start_s = torch.cumsum(full_s, 0) - full_s
        rank = torch.empty_like(self.index_n)
        rank[order] = torch.arange(len(x_n), device=x_n.device) - start_s[self.index_n[order]]
        return torch.where(self.valid_n, rank, torch.full_like(rank, -1))

    def median(self, x_n: Tensor) -> Tensor:
        """Mean of the two middle values for even counts; 0 where a group has no valid row."""
        rank, size = self.rank(x_n), self.count()
        middle = self.valid_n & ((rank == (size - 1) // 2) | (rank == size // 2))
        picked = torch.where(middle, x_n, torch.zeros_like(x_n))
        n_middle = self._spread(self._sum_s(middle.to(x_n.dtype)))
        return self._spread(self._sum_s(picked)) / n_middle.clamp(min=1)

    def flat(self, x_n: Tensor) -> Tensor:
        """True where all valid values of the group lie within FLAT of each other. bool [N]."""
        return (self.max(x_n) - self.min(x_n) <= FLAT) | (self.count() == 0)


def flat_rows(*, reward_nk: Tensor, weight_k: Tensor, key_n: Tensor) -> Tensor:
    """Rows whose group carries no relative signal: EVERY weighted component is constant in it. bool [N].

    A component of weight 0 does not count; NaN (does not apply) leaves the comparison.
    """
    flat = torch.ones(len(key_n), dtype=torch.bool, device=key_n.device)
    for k in range(reward_nk.shape[1]):
        if weight_k[k] != 0:
            part_n = reward_nk[:, k] * weight_k[k]
            flat &= Groups(key_n, torch.isfinite(part_n)).flat(torch.nan_to_num(part_n))
    return flat


def total_reward(*, reward_nk: Tensor, weight_k: Tensor) -> Tensor:
    """Weighted sum over the components that apply; NaN where none does. [N]"""
    applies = torch.isfinite(reward_nk)
    total = (torch.where(applies, reward_nk, torch.zeros_like(reward_nk)) * weight_k).sum(1)
    return torch.where(applies.any(1), total, torch.full_like(total, torch.nan))
