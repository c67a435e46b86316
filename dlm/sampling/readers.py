"""Hidden states of a block for some rows of a canvas: what a step of decoding costs. Axes: n rows, b block columns.

A reader is told three things: `enter` a block, `hidden` of rows that still have masks in it, `leave` it with the rows
that go on. `full.py` and `blocks.py` have one reader for each kind of attention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.models.base import Cache, MaskedLM


class Reader(ABC):
    """hide_nl   bool [n, l] or None: columns shown as the mask token whatever they hold (guidance).

    forwards     batches put through the model so far, row_forwards rows of them.
    """

    def __init__(self, model: MaskedLM, canvas: Canvas, *, hide_nl: Tensor | None = None) -> None:
        self.model, self.canvas, self.hide_nl = model, canvas, hide_nl
        self.padded = not bool(canvas.valid_nl.all())
        self.forwards = self.row_forwards = 0

    def enter(self, block: int, rows: Tensor) -> None:  # noqa: B027
        """A block begins for these rows; they are among those that went on from the block before."""

    @abstractmethod
    def hidden(self, block: int, rows: Tensor) -> Tensor:
        """[len(rows), b, d] at the canvas as it is now. `rows` can only become fewer inside a block, in order."""

    def leave(self, block: int, rows: Tensor) -> None:  # noqa: B027
        """A block is filled; these rows have another one."""

    def columns(self, block: int) -> tuple[int, int]:
        start = self.canvas.prefix + block * self.canvas.block
        return start, start + self.canvas.block

    def run(self, rows: Tensor, start: int, stop: int, attend_nqk: Tensor | None, cache: Cache | None = None) -> Tensor:
        """One forward of the columns start..stop."""
        ids = self.canvas.ids_nl[rows, start:stop]
        if self.hide_nl is not None:
            ids = ids.masked_fill(self.hide_nl[rows, start:stop], self.model.traits.mask_id)
        self.forwards += 1
        self.row_forwards += len(rows)
        positions = self.canvas.positions_nl[rows, start:stop]
        return self.model.hidden(ids, positions_nl=positions, attend_nqk=attend_nqk, cache=cache)

    def window(self, rows: Tensor, start: int, stop: int, keys: int) -> Tensor | None:
        """Columns start..stop see all valid ones of the first `keys`, and themselves: bool [n, q, keys]."""
        if not self.padded:
            return None
        valid = self.canvas.valid_nl[rows, :keys]
        own = torch.arange(keys, device=valid.device) == torch.arange(start, stop, device=valid.device)[:, None]
        return (valid[:, None, :] & self.canvas.valid_nl[rows, start:stop, None]) | own


def places(rows: Tensor, among: Tensor) -> Tensor:
    """Where each of `rows` stands in `among`; both ascending."""
    return torch.searchsorted(among, rows)
