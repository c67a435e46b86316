"""One decoded (or demonstrated) completion, with all that is needed to recompute its likelihood."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Kept:
    """Ids that top-p / top-k kept, position by position: `ids` int64 [sum counts], `counts` int64 [L] (0 = all)."""

    ids: Tensor
    counts: Tensor


@dataclass(eq=False)
class Row:
    """The completion of one prompt: L positions that began as masks, in order.

    prompt       int64 [P], never masked by the sampler.
    ids          int64 [L]; a position that was never filled still holds the mask token.
    steps        int64 [L], the step (of the whole completion, from 0) that filled each position; -1 = never filled.
    length       positions up to and including the first end token; L when there is none.
    temperature  of the sampler: its log-probabilities are those of softmax(logits / temperature).
    kept         None when nothing was cut off.
    seed         of every random number that a likelihood estimate of this row draws.
    demonstration   the row was written by a person, not sampled; its steps are all -1.
    """

    prompt: Tensor
    ids: Tensor
    steps: Tensor
    length: int
    temperature: float = 1.0
    kept: Kept | None = None
    seed: int = 0
    demonstration: bool = False

    def __len__(self) -> int:
        return int(self.ids.shape[0])
