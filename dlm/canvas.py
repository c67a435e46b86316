"""Prompts and their canvases laid out as one batch. Axes: n rows, f prefix columns, r region columns, l = f + r.

    columns   [ pads | prompt ............ | region: (prompt tail) masks masks masks (excess) ]
                       prefix, f columns     whole blocks, r columns

Full attention: the prefix is the prompt, the region the completion, blocks count from its first column. Block
attention: blocks lie on the grid of positions from 0 of each row, so the prefix holds the prompt's whole blocks only
and the tail of the prompt shares the first block of the region. A region is always whole blocks: what exceeds the
completion is neither filled nor attended to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.models.base import Traits


@dataclass
class Canvas:
    """ids_nl int64; valid_nl bool (False: pads, excess); positions_nl int64; fillable_nl bool: completion positions.

    prefix   columns before the region. block  columns of a decoding block. tail_n  prompt tokens inside the region.
    """

    ids_nl: Tensor
    valid_nl: Tensor
    positions_nl: Tensor
    fillable_nl: Tensor
    prefix: int
    block: int
    tail_n: Tensor

    @property
    def blocks(self) -> int:
        return (self.ids_nl.shape[1] - self.prefix) // self.block

    def completion(self, table_nl: Tensor, row: int) -> Tensor:
        """The completion's part of a table over the columns, in order: [L]."""
        return table_nl[row][self.fillable_nl[row]]


def layout(
    prompts: Sequence[Tensor],
    limits: Sequence[int],
    traits: Traits,
    *,
    block: int,
    fill: Sequence[Tensor] | None = None,
) -> Canvas:
    """`limits[i]`: completion positions of row i. `fill`: their ids, [limit] each; masks when None. On the CPU."""
    tails = [len(p) % block if traits.attention == "block" else 0 for p in prompts]
    prefix = max(len(p) - t for p, t in zip(prompts, tails, strict=True))
    blocks = max(-(-(t + n) // block) for t, n in zip(tails, limits, strict=True))
    width = prefix + blocks * block
    ids = torch.full((len(prompts), width), traits.pad_id, dtype=torch.long)
    valid = torch.zeros(len(prompts), width, dtype=torch.bool)
    positions = torch.zeros(len(prompts), width, dtype=torch.long)
    fillable = torch.zeros(len(prompts), width, dtype=torch.bool)
    for i, (prompt, tail, limit) in enumerate(zip(prompts, tails, limits, strict=True)):
        start = prefix - (len(prompt) - tail)
        middle, stop = start + len(prompt), start + len(prompt) + limit
        ids[i, start:middle] = prompt
        ids[i, middle:stop] = traits.mask_id if fill is None else fill[i]
        valid[i, start:stop] = True
        positions[i, start:] = torch.arange(width - start)
        fillable[i, middle:stop] = True
    return Canvas(ids, valid, positions, fillable, prefix, block, torch.tensor(tails))
