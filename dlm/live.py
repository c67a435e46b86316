"""Decoding as it happens: canvases redrawn in the terminal, masks as dim blocks, what was just filled highlighted."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text
from torch import Tensor

from dlm.show import MASK, parts

BLOCK = "░"
STYLES = {"mask": "dim", "new": "bold green", "old": ""}
#: A step stays on the screen at least that long: a small model would be through before anybody sees it.
SECONDS_A_STEP = 0.04


class Board:
    """Called by the sampler after every step of each row (`dlm.sampling.batch.OnStep`)."""

    def __init__(self, tokenizer: Any, mask_id: int, rows: int, console: Console) -> None:
        self.tokenizer, self.mask_id, self.rows = tokenizer, mask_id, rows
        self._ids: dict[int, Tensor] = {}
        self._new: dict[int, Tensor] = {}
        self._steps = [0] * rows
        self._before, self._drawn = rows, 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="ellipsis")

    def __enter__(self) -> Board:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._draw()
        self._live.__exit__(kind, error, at)

    def __call__(self, row: int, ids_l: Tensor, step: int) -> None:
        if row <= self._before:  # every row of the last step was told
            self._draw()
        before = self._ids.get(row)
        filled = ids_l != self.mask_id
        self._new[row] = filled if before is None else filled & (before == self.mask_id)
        self._ids[row], self._steps[row], self._before = ids_l.clone(), step + 1, row

    def _draw(self) -> None:
        wait = self._drawn + SECONDS_A_STEP - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self._live.update(self.picture(), refresh=True)
        self._drawn = time.monotonic()

    def picture(self) -> RenderableType:
        shown: list[Text] = []
        for row in sorted(self._ids):
            if self.rows > 1:
                shown.append(Text(f"answer {row + 1} of {self.rows}", style="bold"))
            shown += [self._canvas(row), Text(self._counts(row), style="dim"), Text("")]
        return Group(*shown[:-1])

    def _canvas(self, row: int) -> Text:
        filled = self._ids[row] != self.mask_id
        out = Text()
        for text, kind in parts(self.tokenizer, self._ids[row], filled, self._new[row]):
            out.append(text.replace(MASK, BLOCK) if kind == "mask" else text, style=STYLES[kind])
        return out

    def _counts(self, row: int) -> str:
        filled, steps = int((self._ids[row] != self.mask_id).sum()), self._steps[row]
        return f"{filled} of {len(self._ids[row])} tokens, {counts(steps, filled)}"


def counts(forwards: int, tokens: int) -> str:
    """`12 forwards, 2.7 tokens a forward`."""
    return f"{forwards} {'forward' if forwards == 1 else 'forwards'}, {tokens / max(forwards, 1):.1f} tokens a forward"
