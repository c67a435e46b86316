"""Segment reductions over integer keys: the statistics of groups that may be ragged, scattered and partly invalid.

Axes: N rows, S distinct keys. Each statistic is returned per row ([N]), so callers never handle S.
"""

from __future__ import annotations

from functools import cached_property

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
    low, high = (int(v) for v in torch.aminmax(key_n))
    if high - low < 4 * key_n.numel():
        return key_n.long() - low if low else key_n.long(), high - low + 1
    uniques, index_n = torch.unique(key_n, return_inverse=True)
    return index_n, int(uniques.numel())


def _equal_blocks(key_n: Tensor) -> tuple[int, int] | None:
    """(groups, rows of each) where rows lie group after group, all of one size, keys rising: as trainers make them."""
    if key_n.numel() == 0:
        return None
    size = int((key_n == key_n[0]).sum())
    if key_n.numel() % size:
        return None
    table = key_n.reshape(-1, size)
    first = table[:, 0]
    if not bool((table == first[:, None]).all()) or not bool((first[1:] > first[:-1]).all()):
        return None
    return len(first), size


class Groups:
    """Rows that share a key. Rows where `valid_n` is False belong to a group but leave every statistic.

    Sums are made in float64, so that the order of the rows does not show in float32. Equal blocks of rows are reduced
    as a table [groups, rows]; all other batches by scattered additions. `blocks=False` switches the first form off.
    """

    def __init__(self, key_n: Tensor, valid_n: Tensor | None = None, *, blocks: bool = True) -> None:
        if key_n.dim() != 1 or key_n.dtype.is_floating_point:
            raise ValueError(f"a key is int64 [N]; got {key_n.dtype} {list(key_n.shape)}")
        self._blocks = _equal_blocks(key_n) if blocks else None
        self._key_n = key_n
        self._valid_n = None if valid_n is None or bool(valid_n.all()) else valid_n.bool()
        self.all_valid = self._valid_n is None
        if self._blocks is None:
            self.index_n, self.n_groups = _dense(key_n)
        else:
            self.n_groups = self._blocks[0]
        self._size_s = self._sizes()

    @cached_property
    def valid_n(self) -> Tensor:
        """Which rows are counted; bool [N]."""
        return torch.ones_like(self._key_n, dtype=torch.bool) if self._valid_n is None else self._valid_n

    @cached_property
    def index_n(self) -> Tensor:
        """The group of each row, from 0; int64 [N]."""
        return self._spread(torch.arange(self.n_groups, device=self._key_n.device))

    def _sizes(self) -> Tensor:
        """Valid rows of each group, float64 [S]."""
        if self._blocks is not None and self.all_valid:
            groups, rows = self._blocks
            return self._key_n.new_full((groups,), rows, dtype=torch.float64)
        return self._sum_s(self.valid_n)

    def _sum_s(self, x_n: Tensor) -> Tensor:
        """float64 [S]."""
        if self._blocks is not None:
            return x_n.reshape(self._blocks).sum(1, dtype=torch.float64)
        x_n = x_n.to(torch.float64)
        return x_n.new_zeros(self.n_groups).index_add_(0, self.index_n, x_n)

    def _range_s(self, x_n: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest valid value of each group; inf and -inf where there is none. [S] each."""
        low_n = high_n = x_n
        if not self.all_valid:
            low_n = torch.where(self.valid_n, x_n, torch.full_like(x_n, torch.inf))
            high_n = torch.where(self.valid_n, x_n, torch.full_like(x_n, -torch.inf))
        if self._blocks is not None:
            return low_n.reshape(self._blocks).amin(1), high_n.reshape(self._blocks).amax(1)
        start = x_n.new_full((self.n_groups,), torch.inf)
        low_s = start.scatter_reduce(0, self.index_n, low_n, "amin")
        return low_s, (-start).scatter_reduce(0, self.index_n, high_n, "amax")

    def _spread(self, x_s: Tensor) -> Tensor:
        if self._blocks is None:
            return x_s.index_select(0, self.index_n)  # several times faster than x_s[index] on CPUs
        return x_s[:, None].expand(self._blocks).reshape(-1)

    def _zeroed(self, x_n: Tensor) -> Tensor:
        return x_n if self.all_valid else torch.where(self.valid_n, x_n, torch.zeros_like(x_n))

    def _mean_s(self, x_n: Tensor) -> Tensor:
        return (self._sum_s(self._zeroed(x_n)) / self._size_s.clamp(min=1)).to(x_n.dtype)

    def count(self) -> Tensor:
        """Valid rows of the group, int64 [N]."""
        return self._spread(self._size_s).long()

    def sum(self, x_n: Tensor) -> Tensor:
        return self._spread(self._sum_s(self._zeroed(x_n)).to(x_n.dtype))

    def mean(self, x_n: Tensor) -> Tensor:
        """0 where a group has no valid row."""
        return self._spread(self._mean_s(x_n))

    def std(self, x_n: Tensor, *, ddof: int) -> Tensor:
        """Two-pass deviation; 0 where fewer than ddof + 1 valid rows. ddof: 0 or 1."""
        return self.mean_and_std(x_n, ddof=ddof)[1]

    def mean_and_std(self, x_n: Tensor, *, ddof: int) -> tuple[Tensor, Tensor]:
        """`mean` and `std`, in less time than one after the other."""
        mean_n = self.mean(x_n)
        centred = self._zeroed(x_n - mean_n)
        square_s = self._sum_s(centred * centred)
        free_s = (self._size_s - ddof).clamp_(min=1)  # of one row the squares are exactly 0
        return mean_n, self._spread((square_s / free_s).sqrt_().to(x_n.dtype))

    def leave_one_out(self, x_n: Tensor) -> Tensor:
        """Mean of the OTHER valid rows of the group; 0 where there is none."""
        others = (self._spread(self._size_s) - self.valid_n.to(torch.float64)).to(x_n.dtype)
        return (self.sum(x_n) - self._zeroed(x_n)) / others.clamp(min=1)

    def max(self, x_n: Tensor) -> Tensor:
        """-inf where a group has no valid row."""
        return self._spread(self._range_s(x_n)[1])

    def min(self, x_n: Tensor) -> Tensor:
        """+inf where a group has no valid row."""
        return self._spread(self._range_s(x_n)[0])

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
        middle_s = self._sum_s(picked) / self._sum_s(middle).clamp(min=1)
        return self._spread(middle_s.to(x_n.dtype))

    def flat(self, x_n: Tensor) -> Tensor:
        """True where all valid values of the group lie within FLAT of each other. bool [N]."""
        low_s, high_s = self._range_s(x_n)
        return self._spread(high_s - low_s <= FLAT)  # -inf - inf without any valid row


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
    """Weighted sum over the components that apply; NaN where none does. [N,K] -> [N], or [N,T,K] -> [N,T]."""
    applies = torch.isfinite(reward_nk)
    total = (torch.where(applies, reward_nk, torch.zeros_like(reward_nk)) * weight_k).sum(-1)
    return torch.where(applies.any(-1), total, torch.full_like(total, torch.nan))
