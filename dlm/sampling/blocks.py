"""Block attention: a block sees the finished ones before it, whose keys and values never change (SDAR, 2510.06303).

With the cache, the prompt's whole blocks are run once, a step runs the block alone, and a filled block is run once more
to be kept (not the last one). Without, a step runs everything up to the end of the block. Both give the same tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlm import attention
from dlm.canvas import Canvas
from dlm.models.base import MaskedLM
from dlm.models.caches import AppendCache
from dlm.sampling.readers import Reader, places


class PlainBlockReader(Reader):
    def hidden(self, block: int, rows: Tensor) -> Tensor:
        start, stop = self.columns(block)
        return self.run(rows, 0, stop, self._causal(rows, stop))[:, start:]

    def _causal(self, rows: Tensor, stop: int) -> Tensor:
        canvas = self.canvas
        return attention.block_causal(canvas.positions_nl[rows, :stop], canvas.valid_nl[rows, :stop], canvas.block)


class CachedBlockReader(PlainBlockReader):
    def __init__(self, model: MaskedLM, canvas: Canvas, *, hide_nl: Tensor | None = None) -> None:
        super().__init__(model, canvas, hide_nl=hide_nl)
        # the last block is never kept, but seen: memory for all columns
        self._cache = AppendCache(room=canvas.ids_nl.shape[1])
        self._rows: Tensor | None = None

    def enter(self, block: int, rows: Tensor) -> None:
        if self._rows is None and self.canvas.prefix:
            self._cache.store = True
            prefix = self.canvas.prefix
            self.run(rows, 0, prefix, self._causal(rows, prefix), self._cache)
        self._select(rows)

    def hidden(self, block: int, rows: Tensor) -> Tensor:
        assert self._rows is not None
        start, stop = self.columns(block)
        self._cache.store = False
        everyone = len(rows) == len(self._rows)
        cache = self._cache if everyone else _Some(self._cache, places(rows, self._rows))
        return self.run(rows, start, stop, self.window(rows, start, stop, stop), cache)

    def leave(self, block: int, rows: Tensor) -> None:
        if len(rows):
            self._select(rows)
            start, stop = self.columns(block)
            self._cache.store = True
            self.run(rows, start, stop, self.window(rows, start, stop, stop), self._cache)

    def _select(self, rows: Tensor) -> None:
        if self._rows is not None and len(rows) < len(self._rows):
            self._cache.keep(places(rows, self._rows))
        self._rows = rows


class _Some:
    """Some rows of a cache, for one forward that keeps nothing; copied a layer at a time."""

    def __init__(self, cache: AppendCache, rows: Tensor) -> None:
        self.cache, self.rows = cache, rows

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if not self.cache.columns:
            return keys, values
        before = self.cache.read(layer)
        return torch.cat([before[0][self.rows], keys], 2), torch.cat([before[1][self.rows], values], 2)
