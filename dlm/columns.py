"""One forward over rows of columns, padded or packed. Axes: n rows, l columns, b bins of w columns, d width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm import attention
from dlm.models.base import MaskedLM


@dataclass(frozen=True)
class Columns:
    """What is put in, on the CPU: ids, which columns are real, their positions, and which are of the noisy copy."""

    ids_nl: Tensor
    valid_nl: Tensor
    positions_nl: Tensor
    noisy_nl: Tensor

    def of(self, rows: Tensor) -> Columns:
        """Some of the rows: indices int64."""
        return Columns(*(x[rows] for x in vars(self).values()))

    def beside(self, other: Columns) -> Columns:
        """Both, one after the other."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Columns(*(torch.cat(pair, 1) for pair in pairs))


def padded_hidden(model: MaskedLM, columns: Columns, block: int | None) -> Tensor:
    """Hidden states [n, l, d] of a row each. block: of block attention, None = full."""
    device = model.head.weight.device
    ids, valid, positions, noisy = (x.to(device) for x in vars(columns).values())
    attend = attention.full(valid) if block is None else attention.sees(valid.long() - 1, positions, noisy, block)
    return model.hidden(ids, positions_nl=positions, attend_nqk=attend)


def packed_hidden(model: MaskedLM, columns: Columns, block: int | None) -> Tensor:
    """The same from sequences that hold several rows side by side, as wide as the longest row: what is not real is
    zero. Rows of many lengths then cost their own columns, not the longest one's."""
    device = model.head.weight.device
    row_b, width = _bins(columns.valid_nl.sum(1).tolist())
    shape = (len(row_b), width)
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    segment, noisy = torch.full(shape, -1), torch.zeros(shape, dtype=torch.bool)
    bin_at, column_at = torch.zeros_like(columns.ids_nl), torch.zeros_like(columns.ids_nl)
    for b, rows in enumerate(row_b):
        start = 0
        for i in rows:
            real = columns.valid_nl[i]
            stop = start + int(real.sum())
            ids[b, start:stop], positions[b, start:stop] = columns.ids_nl[i, real], columns.positions_nl[i, real]
            noisy[b, start:stop], segment[b, start:stop] = columns.noisy_nl[i, real], i
            bin_at[i, real], column_at[i, real] = b, torch.arange(start, stop)
            start = stop
    ids, positions, segment, noisy = (x.to(device) for x in (ids, positions, segment, noisy))
    attend = attention.sees(segment, positions, None if block is None else noisy, block)
    hidden = model.hidden(ids, positions_nl=positions, attend_nqk=attend)
    found = hidden[bin_at.to(device), column_at.to(device)]
    return torch.where(columns.valid_nl.to(device)[:, :, None], found, torch.zeros_like(found))


def _bins(lengths: list[int]) -> tuple[list[list[int]], int]:
    """Rows by bin, longest first into the first bin that has room, and the width of a bin: the longest row."""
    width = max(lengths)
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        b = next((b for b, left in enumerate(room) if left >= lengths[i]), None)
        if b is None:
            bins.append([])
            room.append(width)
            b = len(bins) - 1
        bins[b].append(i)
        room[b] -= lengths[i]
    return bins, width
