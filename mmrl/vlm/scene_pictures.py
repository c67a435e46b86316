"""Pictures of digit scenes: real handwritten digits at random sizes and places, with boxes tight around the ink.

A scene is 64 x 64 pixels, one to three digits in a dark ink on a light, mildly uneven paper. Boxes never touch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmrl.data.digits import Digits

SIDE = 64  # pixels of a scene
DIGIT_SIDES = (22, 37)  # a digit is drawn with a side of 22..36 pixels
INK_ALPHA = 0.35  # a pixel belongs to the digit where the ink covers more than this
GAP = 2  # pixels at least between two boxes
COORDINATES = tuple(round(1000 * k / SIDE) for k in range(SIDE + 1))  # every value a box of a scene can have

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Placed:
    """One digit of a scene: its class, its tight box in pixels (x1, y1, x2, y2; the ends are outside) and its source
    picture (index in the UCI file)."""

    label: int
    box: Box
    source: int


@dataclass(frozen=True)
class Scene:
    picture: Image.Image  # RGB, 64 x 64
    digits: tuple[Placed, ...]


def norm1000(box: Box) -> list[int]:
    """Pixels of a scene -> 0..1000."""
    return [COORDINATES[v] for v in box]


def _alpha(level_88: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.float32]:
    """Ink coverage 0..1 of one digit enlarged to `side` pixels and cut to its ink: [h, w] float32."""
    grey = Image.fromarray((level_88 * (255 / 16)).round().astype(np.uint8))
    alpha = np.asarray(grey.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float32) / np.float32(255)
    rows = np.flatnonzero((alpha > INK_ALPHA).any(1))
    columns = np.flatnonzero((alpha > INK_ALPHA).any(0))
    cut: npt.NDArray[np.float32] = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return cut


def _apart(box: Box, others: list[Placed]) -> bool:
    x1, y1, x2, y2 = box
    return all(
        x1 >= o.box[2] + GAP or o.box[0] >= x2 + GAP or y1 >= o.box[3] + GAP or o.box[1] >= y2 + GAP for o in others
    )


def _paper(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Light background with a slight tint, slope and grain: [64, 64, 3] float32, 0..255."""
    tint = rng.uniform(200, 245) + rng.uniform(-8, 8, size=3)
    ramp = np.linspace(-0.5, 0.5, SIDE)
    slope = rng.uniform(-20, 20) * ramp[:, None] + rng.uniform(-20, 20) * ramp[None, :]
    grain = rng.normal(0, 3, size=(SIDE, SIDE))
    return (tint + (slope + grain)[..., None]).astype(np.float32)


def draw(digits: Digits, labels: list[int], rng: np.random.Generator) -> Scene:
    """A scene that shows the given classes, each by a picture drawn at random from `digits`."""
    while True:  # a layout that leaves no room for the last digit starts anew
        canvas = _paper(rng)
        placed: list[Placed] = []
        for label in labels:
            source = int(rng.choice(np.flatnonzero(digits.labels == label)))
            alpha = _alpha(digits.images[source], int(rng.integers(*DIGIT_SIDES)))
            h, w = alpha.shape
            ink = rng.uniform(10, 70) + rng.uniform(-10, 40, size=3)
            for _ in range(20):
                x, y = int(rng.integers(0, SIDE - w + 1)), int(rng.integers(0, SIDE - h + 1))
                box = (x, y, x + w, y + h)
                if _apart(box, placed):
                    break
            else:
                break
            patch = canvas[y : y + h, x : x + w]
            canvas[y : y + h, x : x + w] = patch + alpha[..., None] * (ink.astype(np.float32) - patch)
            placed.append(Placed(label, box, int(digits.index[source])))
        if len(placed) == len(labels):
            pixels = canvas.clip(0, 255).round().astype(np.uint8)
            return Scene(Image.fromarray(pixels), tuple(placed))
