"""Random numbers of an estimate: one stream a row, so that batches can be cut anywhere. Axes: n rows, l positions.

A stream gives as many numbers as the row has positions, never as many as the batch has columns: padding changes
nothing. On the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlm.likelihood.base import Completions

#: Above every uniform number: positions that draw none are never below a threshold.
_NEVER = 2.0


def streams(rows: Completions) -> list[torch.Generator]:
    """A generator a row, seeded by it."""
    return [torch.Generator().manual_seed(int(seed)) for seed in rows.seed_n.tolist()]


def uniform_n(streams: list[torch.Generator]) -> Tensor:
    """One number of [0, 1) a row; float64 [n]."""
    if not streams:
        return torch.zeros(0, dtype=torch.float64)
    return torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in streams])


def uniform_nl(streams: list[torch.Generator], at_nl: Tensor) -> Tensor:
    """A number of [0, 1) for each position of `at_nl`, above 1 elsewhere; float64 [n, l]."""
    out_nl = torch.full(at_nl.shape, _NEVER, dtype=torch.float64)
    for row, generator in enumerate(streams):
        out_nl[row, at_nl[row]] = torch.rand(int(at_nl[row].sum()), generator=generator, dtype=torch.float64)
    return out_nl


def lowest(u_nl: Tensor, count_n: Tensor) -> Tensor:
    """The `count_n` positions with the lowest numbers: subsets of that size, all equally likely; bool [n, l]."""
    rank_nl = u_nl.argsort(dim=1).argsort(dim=1)
    return (rank_nl < count_n[:, None]) & (u_nl < _NEVER)


def integer_n(u_n: Tensor, high_n: Tensor) -> Tensor:
    """Uniform over 1 .. high_n from u in [0, 1); int64 [n]; 0 where high_n is 0."""
    return torch.minimum((u_n * high_n).floor().long() + 1, high_n)


def lengths(rows: Completions) -> Tensor:
    """Positions of each row's region; int64 [n]."""
    return rows.region_nl.sum(dim=1)


def times(part: Tensor, whole: Tensor) -> Tensor:
    """whole / part in float64 (integers would divide to float32); `whole` where part is 0."""
    return whole.double() / part.clamp(min=1)


def over(scored_nl: Tensor, factor: Tensor) -> Tensor:
    """`factor` ([n], [n, l] or a number) where scored, 0 elsewhere; float64 [n, l]."""
    table = factor[:, None] if factor.ndim == 1 else factor
    return torch.where(scored_nl, table.to(torch.float64), torch.zeros((), dtype=torch.float64))
