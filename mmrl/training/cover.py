"""Whether the pieces of an update hold together what an objective must see at once. Axes: N rows, T decisions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mmrl.core.ratios import segment_groups
from mmrl.core.registry import SCOPES
from mmrl.training.policy import Bundle, Piece


def covers(
    bundles: list[Bundle],
    scope: str,
    *,
    alone: bool = True,
    mask_nt: Tensor | None = None,
    segments: Iterable[Tensor] = (),
) -> bool:
    """One pass over these pieces is exact for this scope.

    Summands of one decision never do; whole rows satisfy row scope; wider scopes need everything in one piece (policies
    are asked for whole groups, and a group stays whole on its rank). alone: no other rank has rows of the update.

    mask_nt, segments: valid decisions and segment numbers [N,T] of the rows that the pieces were made of; scope
    `segment` holds for pieces that are whole rows, or that cut none of these segments.
    """
    pieces = [p for b in bundles for p in b.pieces]
    if any(p.share for p in pieces):
        return False
    if scope == "decision" or alone and len(pieces) == 1 and pieces[0].whole_rows:
        return True
    if all(p.whole_rows for p in pieces):
        return SCOPES.index(scope) <= SCOPES.index("group")
    numbers = list(segments)
    if scope != "segment" or mask_nt is None or not numbers:
        return False
    owner_nt = _owners(pieces, mask_nt)
    return not any(_cut(owner_nt, mask_nt, segment_nt) for segment_nt in numbers)


def _owners(pieces: list[Piece], mask_nt: Tensor) -> Tensor:
    """The number of the piece that evaluates each decision, -1 where none does. int64 [N,T]"""
    owner_nt = torch.full(mask_nt.shape, -1, dtype=torch.long)
    for number, piece in enumerate(pieces):
        rows = piece.rows.cpu()
        if piece.columns is not None:
            owner_nt[rows[:, None], piece.columns.cpu()[None, :]] = number
            continue
        own = torch.ones_like(mask_nt[rows], dtype=torch.bool) if piece.own is None else piece.own.cpu().bool()
        width = own.shape[1]  # a piece may be shorter than the table
        owner_nt[rows, :width] = torch.where(
            own, torch.full_like(owner_nt[rows, :width], number), owner_nt[rows, :width]
        )
    return owner_nt


def _cut(owner_nt: Tensor, mask_nt: Tensor, segment_nt: Tensor) -> bool:
    """Some segment has valid decisions in two pieces, or in a piece and in none."""
    groups = segment_groups(mask_nt, segment_nt)
    owner = owner_nt.reshape(-1).double()
    return bool(((groups.min(owner) != groups.max(owner)) & mask_nt.reshape(-1).bool()).any())
