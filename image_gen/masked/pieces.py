"""Decoded canvases as pieces of the streaming update: one decoding step of a few rows at a time.

Axes: N rows, T decisions (positions for tokens, steps for actions), n rows of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from image_gen.masked.rows import Decoding
from mmrl.masked.steps import fill_set
from mmrl.training.policy import Bundle, Piece


@dataclass
class Round:
    """Private data of a piece: rows at one decoding step."""

    rows: list[Decoding]
    step: int


@dataclass
class Actions:
    """Private data of a piece: the actions of rows at these steps."""

    rows: list[Decoding]
    steps: list[int]


def token_bundles(rows: Sequence[Decoding], mask_nt: Tensor, *, piece_rows: int) -> list[Bundle]:
    """A piece holds the positions that one step filled in up to `piece_rows` rows; a step is never cut. Steps that
    filled nothing that is trained have no piece."""
    found = []
    for at in _chunks(rows, piece_rows):
        some = [rows[i] for i in at.tolist()]
        steps_nl = torch.stack([row.steps for row in some])
        for step in range(some[0].n_steps):
            own = fill_set(steps_nl, step) & mask_nt[at].bool()
            used = own.any(1).nonzero()[:, 0]
            if len(used):
                round_ = Round([some[i] for i in used.tolist()], step)
                found.append(Bundle([Piece(at[used], None, round_, own=own[used])]))
    return found


def action_bundles(rows: Sequence[Decoding], mask_nt: Tensor, *, piece_rows: int, one_by_one: bool) -> list[Bundle]:
    """Whole rows where the action depends on the step alone; `one_by_one`: one step at a time, for each costs a
    forward of the token model."""
    if not one_by_one:
        lengths = sorted({row.n_steps for row in rows})
        groups = [torch.tensor([i for i, row in enumerate(rows) if row.n_steps == t]) for t in lengths]
        return [
            Bundle([Piece(at, None, Actions([rows[i] for i in at.tolist()], list(range(t - 1))))])
            for at, t in zip(groups, lengths, strict=True)
            if t > 1
        ]
    found = []
    for at in _chunks(rows, piece_rows):
        some = [rows[i] for i in at.tolist()]
        for step in range(some[0].n_steps - 1):
            if bool(mask_nt[at, step].any()):
                found.append(Bundle([Piece(at, torch.tensor([step]), Actions(some, [step]))]))
    return found


def _chunks(rows: Sequence[Decoding], size: int) -> Iterator[Tensor]:
    """Indices of consecutive rows of equally many steps, `size` at most."""
    start = 0
    while start < len(rows):
        end = start + 1
        while end < min(len(rows), start + size) and rows[end].n_steps == rows[start].n_steps:
            end += 1
        yield torch.arange(start, end)
        start = end
