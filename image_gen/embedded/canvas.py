"""Canvases of real digits: one cell of 8 x 8 pixels, or three beside each other. Loads no torch.

A canvas is float32 [8, 8 C] with values 0 (paper) to 1 (ink).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmrl.data.digits import LEVELS, load_digits

SIDE = 8
#: Cells of the wide canvas.
CELLS = 3
#: What a cell shows: a digit 0..9, or nothing.
EMPTY = 10
Canvas = npt.NDArray[np.float32]


def draw(cells: Sequence[int], *, part: str, rng: np.random.Generator) -> Canvas:
    """A random real digit of `part` in each cell, [8, 8 len(cells)]; EMPTY leaves it blank."""
    digits = load_digits(part)
    picture = np.zeros((SIDE, SIDE * len(cells)), dtype=np.float32)
    for at, label in enumerate(cells):
        if label != EMPTY:
            chosen = rng.choice(np.flatnonzero(digits.labels == label))
            picture[:, at * SIDE : (at + 1) * SIDE] = digits.images[chosen] / (LEVELS - 1)
    return picture


#: Cells of the wide canvas that one, two or three digits stand in, in every demonstration; rewards take any.
PLACES = {1: (1,), 2: (0, 2), 3: (0, 1, 2)}


def arrange(wanted: Sequence[int]) -> list[int]:
    """The digits in that order in their cells of the wide canvas, nothing in the others."""
    cells = [EMPTY] * CELLS
    for at, label in zip(PLACES[len(wanted)], wanted, strict=True):
        cells[at] = label
    return cells
