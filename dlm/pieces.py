"""Rows and their views as pieces of the streaming update. Axes: N rows, T positions, n rows of a piece.

A piece is some rows under some of their views, within a budget of padded columns. If all views of a row fit, its
likelihood is known in one piece; if not, each piece holds a share of it (a node of the quadrature, a few rounds of a
decoding), and memory stays that of one piece however many views there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.forward import columns
from dlm.likelihood.base import Completions, Estimator, View
from dlm.rows import Row
from mmrl.core.streams import stream_seed
from mmrl.training.policy import Bundle, Piece


@dataclass
class Chunk:
    """Private data of a piece: rows, views of them, columns T of the tables to return."""

    rows: list[Row]
    views: list[View]
    width: int


def completions(rows: Sequence[Row], regions: Sequence[Tensor], *, block: int, grid: bool, update: int) -> Completions:
    """What an estimator sees. `regions`: bool [L] a row. `grid`: blocks of `block` positions from 0 of the prompt;
    otherwise one block, for with full attention a position sees those of later blocks too."""
    prompts = torch.tensor([len(r.prompt) for r in rows])
    pad = torch.nn.utils.rnn.pad_sequence
    region = pad(list(regions), batch_first=True)
    at = (prompts % block)[:, None] + torch.arange(region.shape[1])
    return Completions(
        region_nl=region,
        steps_nl=pad([r.steps for r in rows], batch_first=True, padding_value=-1),
        block_nl=at // block if grid else torch.zeros_like(at),
        prompt_np=torch.arange(int(prompts.max())) < prompts[:, None],
        seed_n=torch.tensor([stream_seed(r.seed, update) for r in rows]),
    )


@dataclass(frozen=True)
class Planner:
    """How rows are cut.

    budget   padded columns that one piece may run, a row under each of its views counted once.
    block    columns of a decoding block; `grid`: they lie on a grid from position 0 and clean and noisy copies run
             packed (block attention).
    packed   rows of different length lie side by side: they cost their own columns, not the longest one's.
    """

    estimator: Estimator
    block: int
    grid: bool
    budget: int
    packed: bool = False

    def bundles(self, rows: Sequence[Row], regions: Sequence[Tensor], *, width: int, update: int) -> list[Bundle]:
        """One piece a bundle; rows with an empty region have nothing to say and are left out."""
        order = [i for i in range(len(rows)) if bool(regions[i].any())]
        order.sort(key=lambda i: (len(rows[i].prompt) + len(rows[i]), len(rows[i])))
        pieces: list[Piece] = []
        for some in self._fitting([rows[i] for i in order], views=1):
            index = [order[at] for at in some]
            own = [rows[i] for i in index]
            seen = completions(own, [regions[i] for i in index], block=self.block, grid=self.grid, update=update)
            views = self.estimator.views(seen)
            for part in self._fitting(own, views=len(views)):
                at = torch.tensor(part)
                chunk = Chunk([own[i] for i in part], [_cut(view, at) for view in views], width)
                pieces += self._shares(torch.tensor([index[i] for i in part]), chunk)
        return [Bundle([piece]) for piece in pieces]

    def _cost(self, rows: Sequence[Row]) -> int:
        """Columns of all rows under one view."""
        grid = self.block if self.grid else None
        return sum(columns([r], grid) for r in rows) if self.packed else len(rows) * columns(rows, grid)

    def _fitting(self, rows: Sequence[Row], *, views: int) -> list[list[int]]:
        """Consecutive rows that fit the budget under all `views` together; where not even one row does, as many as fit
        under a single view. At least one row, whatever it costs."""
        found: list[list[int]] = []
        for i, row in enumerate(rows):
            if found:
                together = [*(rows[j] for j in found[-1]), row]
                times = views if self._cost([row]) * views <= self.budget else 1
                if self._cost(together) * times <= self.budget:
                    found[-1].append(i)
                    continue
            found.append([i])
        return found

    def _shares(self, index: Tensor, chunk: Chunk) -> list[Piece]:
        """The chunk cut into consecutive views that fit the budget together; views that read nothing are left out."""
        cost, used = self._cost(chunk.rows) / len(chunk.rows), 0.0
        parts: list[Chunk] = []
        for view in chunk.views:
            price = int(view.scored_nl.any(1).sum()) * cost
            if not price:
                continue
            if not parts or used + price > self.budget:
                parts.append(Chunk(chunk.rows, [], chunk.width))
                used = 0.0
            parts[-1].views.append(view)
            used += price
        pieces = [Piece(index, None, part) for part in parts]
        if len(pieces) > 1:
            for piece in pieces:
                if self.estimator.exclusive:
                    scored = torch.stack([v.scored_nl for v in piece.data.views]).any(0)
                    piece.own = torch.nn.functional.pad(scored, (0, chunk.width - scored.shape[1]))
                else:
                    piece.share = True
        return pieces


def _cut(view: View, at: Tensor) -> View:
    prompt = None if view.prompt_masked_np is None else view.prompt_masked_np[at]
    return View(view.masked_nl[at], view.scored_nl[at], view.weight_nl[at], prompt)
