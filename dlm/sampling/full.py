"""Full attention: every step reads the whole canvas, or keeps part of its keys and values from an earlier step.

Blocks are decoded from left to right (semi-autoregressive, LLaDA, arXiv 2502.09992). Caches are those of Fast-dLLM
(arXiv 2505.22618); the first forward of a block is a whole one and its logits are used, so they cost no forward more:

    off     the whole canvas
    prefix  keys and values of the columns before the block are kept; the block and all after it are computed
    dual    those after the block are kept too; the block alone is computed

What is kept was computed when the block began (or `refresh` steps ago), so both are approximations; refresh = 1 is off.
"""

from __future__ import annotations

from torch import Tensor

from dlm.canvas import Canvas
from dlm.models.base import MaskedLM
from dlm.models.caches import ReplaceCache
from dlm.sampling.readers import Reader, places


class FullReader(Reader):
    def __init__(
        self, model: MaskedLM, canvas: Canvas, *, cache: str, refresh: int, hide_nl: Tensor | None = None
    ) -> None:
        super().__init__(model, canvas, hide_nl=hide_nl)
        self.kind, self.refresh = cache, refresh
        self._cache: ReplaceCache | None = None
        self._rows: Tensor | None = None  # whose keys and values are kept
        self._age = 0

    def enter(self, block: int, rows: Tensor) -> None:
        self._cache, self._age = None, 0

    def hidden(self, block: int, rows: Tensor) -> Tensor:
        start, stop = self.columns(block)
        width = self.canvas.ids_nl.shape[1]
        if self._cache is None or (self.refresh and self._age == self.refresh):
            # nothing is kept where the next step would throw it away
            self._cache = ReplaceCache() if self.kind != "off" and self.refresh != 1 else None
            self._rows, self._age = rows, 1
            return self.run(rows, 0, width, self.window(rows, 0, width, width), self._cache)[:, start:stop]
        assert self._rows is not None
        if len(rows) < len(self._rows):
            self._cache.keep(places(rows, self._rows))
            self._rows = rows
        self._age += 1
        self._cache.start = start
        end = width if self.kind == "prefix" else stop
        return self.run(rows, start, end, self.window(rows, start, end, width), self._cache)[:, : stop - start]
