"""What every masked diffusion language model answers, whatever its checkpoint. Axes: n rows, l columns, d width.

A model turns ids into hidden states; which columns may see which is always the caller's to say (`dlm.attention`), so
that full attention, block-causal decoding with a cache and packed clean/noisy pairs are one forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Traits:
    """What tells one family of checkpoints from another.

    name          llada | sdar | dream | a2d: the layout that is loaded and saved.
    mask_id       the token that stands for "not decided yet".
    eos_ids       tokens that end an answer, the one to write first.
    pad_id        fills columns that nobody attends to.
    logit_shift   row i - 1 of the output predicts position i (Dream); `MaskedLM.hidden` undoes it.
    attention     full: every valid column sees every other; block: blocks of `block` on an absolute grid from
                  position 0, bidirectional inside, causal between.
    block         size of that grid; None for full attention.
    window        most positions that the model was made for.
    lora_targets  names of layers that the literature adapts, in this package's names.
    """

    name: str
    mask_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    logit_shift: bool
    attention: Literal["full", "block"]
    block: int | None
    window: int
    lora_targets: tuple[str, ...]


class Cache(Protocol):
    """Keys and values kept between forwards; what `update` returns is attended to. [n, heads, columns, head size]"""

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the columns just computed -> of all columns that queries may see."""


class MaskedLM(nn.Module, ABC):
    """A model on its device. `head` is the output layer [V, d] (tied or not); `embed` the input one."""

    traits: Traits

    @property
    @abstractmethod
    def embed(self) -> nn.Embedding: ...

    @property
    @abstractmethod
    def head(self) -> nn.Linear: ...

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList: ...

    @abstractmethod
    def hidden(
        self, ids_nl: Tensor, *, positions_nl: Tensor, attend_nqk: Tensor | None, cache: Cache | None = None
    ) -> Tensor:
        """Hidden states [n, l, d], aligned: column i is what predicts the token of column i.

        attend_nqk   bool, broadcastable to [n, q, k]: query column q may see key column k; k counts the columns that
                     `cache` adds before them. None = everything sees everything.
        cache        with `logit_shift` a forward of some columns only has no predecessor for its first one: ValueError.
        """
