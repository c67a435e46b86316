"""One sampled (or demonstrated) completion, with all that is needed to recompute its likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmrl.vlm.encode import Prompt


@dataclass
class Kept:
    """Ids that top-p / top-k kept, token by token: `ids` int64 [sum counts], `counts` int64 [T]."""

    ids: torch.Tensor
    counts: torch.Tensor


@dataclass(eq=False)
class Row:
    """A completion of one prompt.

    ids          int64 [T]; the end token is the last one when the completion finished.
    temperature  its log-probabilities are those of softmax(logits / temperature).
    kept         None when nothing was cut off.
    """

    prompt: Prompt
    ids: torch.Tensor
    temperature: float = 1.0
    kept: Kept | None = None

    def __len__(self) -> int:
        return int(self.ids.shape[0])


@dataclass
class Completions:
    """Rows of a piece as tensors: ids [n, R], mask bool [n, R], lengths [n], first positions [n]."""

    ids: torch.Tensor
    mask: torch.Tensor
    lengths: torch.Tensor
    first: torch.Tensor
    temperature: torch.Tensor

    @staticmethod
    def of(rows: Sequence[Row], device: torch.device) -> Completions:
        lengths = torch.tensor([len(r) for r in rows])
        width = int(lengths.max())
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row.ids
        mask = torch.arange(width) < lengths[:, None]
        first = torch.tensor([r.prompt.next_position for r in rows])
        temperature = torch.tensor([r.temperature for r in rows], dtype=torch.float64)
        return Completions(*(x.to(device) for x in (ids, mask, lengths, first, temperature)))
