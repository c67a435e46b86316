"""Step maps: which step of a decoding filled which position of a canvas. Axes: n rows, l positions.

A step map is int64 [n, l]. `steps_nl[i, j]` is the step that filled position j of row i, -1 where no step did (given
from the start, or never filled). A position is filled once, so one integer says it all: the fill set of step s, what
was visible before it, and every forward that has to be repeated to score the decoding.

Pure functions of tensors on any device, whole batches at once, no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slice:
    """One forward that a decoding made (or several of them in parallel), to be repeated.

    masked_nl   bool: what was not filled yet, and so was shown as the mask.
    filled_nl   bool, a subset: what this forward filled; the log-probabilities to read.
    """

    masked_nl: Tensor
    filled_nl: Tensor


@dataclass(frozen=True)
class _Sorted:
    """Positions of each row ordered by (block, step), those left out at the end."""

    order_nl: Tensor  # column of the ith position in that order
    on_nl: Tensor  # it is not left out
    step_nl: Tensor
    starts_nl: Tensor  # it is the first of its (block, step)
    rank_nl: Tensor  # number of distinct steps before its own in its block


def _check(steps_nl: Tensor, *others: Tensor | None) -> None:
    if steps_nl.ndim != 2 or steps_nl.dtype != torch.int64:
        raise ValueError(f"a step map is int64 [n, l], got {steps_nl.dtype} {tuple(steps_nl.shape)}")
    for other in others:
        if other is not None and other.shape != steps_nl.shape:
            raise ValueError(f"shape {tuple(other.shape)} does not fit the step map's {tuple(steps_nl.shape)}")


def _each_row(step: int | Tensor) -> int | Tensor:
    return step[:, None] if isinstance(step, Tensor) and step.ndim == 1 else step


def fill_set(steps_nl: Tensor, step: int | Tensor) -> Tensor:
    """Positions that step `step` (one number, or [n]: one of each row) filled; bool [n, l]. Empty for -1."""
    _check(steps_nl)
    return (steps_nl == _each_row(step)) & (steps_nl >= 0)


def visible_before(steps_nl: Tensor, step: int | Tensor) -> Tensor:
    """Positions that held what they hold now when step `step` ran: filled before it, or by no step; bool [n, l]."""
    _check(steps_nl)
    return steps_nl < _each_row(step)


def n_steps(steps_nl: Tensor, within_nl: Tensor | None = None) -> Tensor:
    """Distinct steps of each row, of the positions `within_nl` (all); int64 [n].

    Forwards that filled something: with all positions, the number of denoising forwards of the decoding.
    """
    _check(steps_nl, within_nl)
    kept = steps_nl if within_nl is None else torch.where(within_nl, steps_nl, -1)
    kept = kept.sort(dim=1).values
    before = torch.cat([torch.full_like(kept[:, :1], -1), kept[:, :-1]], dim=1)
    return ((kept >= 0) & (kept != before)).sum(dim=1)


def check_partition(steps_nl: Tensor, fillable_nl: Tensor) -> None:
    """Every fillable position is filled by one step and no other position by any; else ValueError with the first."""
    _check(steps_nl, fillable_nl)
    wrong = (steps_nl >= 0) != fillable_nl
    if bool(wrong.any()):
        row, column = (int(i) for i in wrong.nonzero()[0])
        what = "was never filled" if bool(fillable_nl[row, column]) else "is given but was filled"
        raise ValueError(f"row {row}, position {column} {what}")


def _sorted(steps_nl: Tensor, block_nl: Tensor | None, within_nl: Tensor | None) -> _Sorted:
    _check(steps_nl, block_nl, within_nl)
    on = steps_nl >= 0 if within_nl is None else within_nl & (steps_nl >= 0)
    base = int(steps_nl.max()) + 2 if steps_nl.numel() else 2
    block = torch.zeros_like(steps_nl) if block_nl is None else block_nl
    left_out = torch.iinfo(torch.int64).max
    key, order = torch.where(on, block * base + steps_nl, left_out).sort(dim=1, stable=True)
    first = torch.ones_like(on[:, :1])
    starts = torch.cat([first, key[:, 1:] != key[:, :-1]], dim=1)
    inside = key // base
    opens = torch.cat([first, inside[:, 1:] != inside[:, :-1]], dim=1)
    count = starts.long().cumsum(dim=1) - 1
    rank = count
    if count.shape[1]:
        rank = count - torch.where(opens, count, 0).cummax(dim=1).values
    return _Sorted(order, key != left_out, steps_nl.gather(1, order), starts, rank)


def rounds(steps_nl: Tensor, block_nl: Tensor | None = None, *, within_nl: Tensor | None = None) -> Tensor:
    """The round that scores each position, from 0; int64 [n, l], -1 where no step filled or outside `within_nl`.

    Rounds of TraceRL (arXiv 2509.06949): round r repeats, in every block at once, the block's (r + 1)th distinct
    step. With block_nl None the whole canvas is one block: the rounds are the distinct steps, in order.
    """
    s = _sorted(steps_nl, block_nl, within_nl)
    return torch.full_like(steps_nl, -1).scatter(1, s.order_nl, torch.where(s.on_nl, s.rank_nl, -1))


def merged(steps_nl: Tensor, block_nl: Tensor | None = None, k: int = 1) -> Tensor:
    """k consecutive distinct steps of a block become one, numbered as the last of them; int64 [n, l].

    TraceRL's `shrink`: fewer forwards to repeat, each a little further from what the decoding saw. k = 1 changes
    nothing; k at least the number of distinct steps makes one step of each block.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    s = _sorted(steps_nl, block_nl, None)
    if k == 1 or not steps_nl.numel():
        return steps_nl.clone()
    # Of the (block, step) pairs in order, every kth of a block begins a new merged step.
    begins = s.starts_nl & (s.rank_nl % k == 0)
    bucket = begins.long().cumsum(dim=1) - 1
    last = torch.full_like(steps_nl, -1).scatter_reduce(1, bucket, s.step_nl, "amax")
    out = torch.where(s.on_nl, last.gather(1, bucket), -1)
    return torch.full_like(steps_nl, -1).scatter(1, s.order_nl, out)


def slices(
    steps_nl: Tensor, block_nl: Tensor | None = None, *, within_nl: Tensor | None = None, shrink: int = 1
) -> list[Slice]:
    """The forwards that score every position given exactly what was visible when it was filled.

    block_nl    blocks that are scored in parallel, because a block sees finished blocks and itself only (packed
                clean and noisy copies). None for full attention: what follows is masked too, one slice a step.
    within_nl   positions to score (all that were filled). Others are masked as the decoding saw them, never scored.
    shrink      see `merged`.

    A position is in `filled_nl` of exactly one slice. As many slices as the row with most rounds has; a row (or block)
    that has fewer masks and fills nothing in the rest.
    """
    steps = merged(steps_nl, block_nl, shrink)
    at = rounds(steps, block_nl, within_nl=within_nl)
    count = int(at.max()) + 1 if at.numel() else 0
    block = torch.zeros_like(steps) if block_nl is None else block_nl
    out = []
    for r in range(count):
        filled = at == r
        now = _over_blocks(torch.where(filled, steps, -1), block)
        out.append(Slice(masked_nl=(now >= 0) & (steps >= now), filled_nl=filled))
    return out


def _over_blocks(value_nl: Tensor, block_nl: Tensor) -> Tensor:
    """The largest value of each position's block."""
    size = int(block_nl.max()) + 1
    most = torch.full((value_nl.shape[0], size), -1, dtype=value_nl.dtype, device=value_nl.device)
    return most.scatter_reduce(1, block_nl, value_nl, "amax").gather(1, block_nl)
