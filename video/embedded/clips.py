"""Clips of moving handwritten digits: 8 frames of 48 x 32 pixels, two lanes, real digits of `mmrl.data.digits`.

In a lane either one digit stays, comes in or leaves, or two digits meet or pass each other. A lane has three places; a
digit goes from one to the next in two frames, half of the way in each, and enters and leaves over the sides. All is
drawn from a generator: the same generator state gives the same clip. Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmrl.data.digits import Digits
from video.clips import Clip

CELL = 16  # pixels of a place, both ways
COLUMNS, LANES = 3, 2
HEIGHT, WIDTH = LANES * CELL, COLUMNS * CELL
FRAMES = 8
FPS = 2.0
STEPS = FRAMES // 2  # moments at which every digit stands on a place
JITTER = 1  # pixels a digit may lie beside its place, all clip long
DIGIT_SIDES = (14, 17)  # a digit is drawn with a side of 14..16 pixels

SINGLE = ("stays", "comes", "leaves")
PAIRS = ("meets", "passes")
FATES = (*SINGLE, *PAIRS)

#: Places of a digit at each moment: 0..2 from the left, -1 and 3 outside.
Path = tuple[int, ...]


@dataclass(frozen=True)
class Lane:
    """What happens in one lane. `digits` has the one that stands left at first before the other; classes 0..9."""

    fate: str
    digits: tuple[int, ...]

    def read(self) -> str:
        """What happens: "5 comes", "3 meets 7"."""
        return (
            f" {self.fate} ".join(map(str, self.digits)) if len(self.digits) == 2 else f"{self.digits[0]} {self.fate}"
        )

    def throughout(self) -> tuple[int, ...]:
        """The digits that are there in every frame."""
        return () if self.fate in ("comes", "leaves") else self.digits


@dataclass(frozen=True)
class Story:
    """A clip and what happens in it, lanes from the top; `sources` are indices of the UCI file, digit by digit."""

    clip: Clip
    lanes: tuple[Lane, ...]
    sources: tuple[int, ...]

    @property
    def does(self) -> dict[int, str]:
        """What every digit of the clip does, lane by lane from the top; no class is there twice."""
        return {digit: lane.fate for lane in self.lanes for digit in lane.digits}


def tell(digits: Digits, fates: tuple[str, ...], rng: np.random.Generator) -> Story:
    """A clip with the given fates, lane by lane from the top; classes, pictures, paths and light are drawn."""
    many = [2 if fate in PAIRS else 1 for fate in fates]
    classes = [int(d) for d in rng.permutation(10)[: sum(many)]]
    lanes = tuple(Lane(fate, tuple(classes[sum(many[:i]) : sum(many[: i + 1])])) for i, fate in enumerate(fates))
    ink_nhw = np.zeros((FRAMES, HEIGHT, WIDTH), dtype=np.float32)
    sources = []
    for row, lane in enumerate(lanes):
        for digit, path in zip(lane.digits, _paths(lane.fate, rng), strict=True):
            chosen = int(rng.choice(np.flatnonzero(digits.labels == digit)))
            sources.append(int(digits.index[chosen]))
            _lay(ink_nhw, digits.images[chosen], row, path, rng)
    return Story(Clip(_lit(ink_nhw, rng), np.arange(FRAMES) / FPS, FRAMES / FPS), lanes, tuple(sources))


# ---- where digits go -----------------------------------------------------------------------------------------------


def _paths(fate: str, rng: np.random.Generator) -> list[Path]:
    """One path a digit, the left one first."""
    if fate == "stays":
        return [_walk(int(rng.integers(COLUMNS)), STEPS, rng)]
    if fate in ("comes", "leaves"):
        comes = _enters(rng)
        return [comes if fate == "comes" else comes[::-1]]
    when = int(rng.integers(1, STEPS))  # from this moment on it has happened
    if fate == "passes":
        left = tuple(0 if t < when else COLUMNS - 1 for t in range(STEPS))
        return [left, tuple(COLUMNS - 1 - place for place in left)]
    left, right = (tuple(p if t < when else 1 for t in range(STEPS)) for p in (0, COLUMNS - 1))
    rest: list[Path] = [(0,) * STEPS, (COLUMNS - 1,) * STEPS]
    return [left, rest[1]] if rng.random() < 0.5 else [rest[0], right]


def _walk(place: int, moments: int, rng: np.random.Generator) -> Path:
    """Stands or takes a step at each moment, inside the frame."""
    path = [place]
    while len(path) < moments:
        path.append(int(np.clip(path[-1] + rng.choice([-1, 0, 1], p=[0.3, 0.4, 0.3]), 0, COLUMNS - 1)))
    return tuple(path)


def _enters(rng: np.random.Generator) -> Path:
    """Outside for one to three moments, then at the side it came from, then on a walk."""
    outside = int(rng.integers(1, STEPS))
    out, edge = ((-1, 0), (COLUMNS, COLUMNS - 1))[int(rng.integers(2))]
    return (out,) * outside + _walk(edge, STEPS - outside, rng)


# ---- drawing -------------------------------------------------------------------------------------------------------


def _lay(
    ink_nhw: npt.NDArray[np.float32], level_88: npt.NDArray[np.uint8], row: int, path: Path, rng: np.random.Generator
) -> None:
    """Draw one digit into all frames, in place; where two overlap, the stronger ink is seen."""
    side = int(rng.integers(*DIGIT_SIDES))
    grey = Image.fromarray((level_88 * (255 / 16)).round().astype(np.uint8))
    small = np.asarray(grey.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float32) / np.float32(255)
    cell = np.zeros((CELL, CELL), dtype=np.float32)
    at = (CELL - side) // 2
    cell[at : at + side, at : at + side] = small * np.float32(rng.uniform(0.8, 1.0))
    dx, dy = (int(v) for v in rng.integers(-JITTER, JITTER + 1, size=2))
    margin = 2 * CELL  # wide enough for a digit outside
    for frame in range(FRAMES):
        here, there = path[frame // 2], path[min(frame // 2 + frame % 2, STEPS - 1)]
        x, y = (here + there) * CELL // 2 + dx, row * CELL + dy
        wide = np.zeros((HEIGHT + 2 * margin, WIDTH + 2 * margin), dtype=np.float32)
        wide[margin + y : margin + y + CELL, margin + x : margin + x + CELL] = cell
        np.maximum(ink_nhw[frame], wide[margin:-margin, margin:-margin], out=ink_nhw[frame])


def _lit(ink_nhw: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Light ink on a dark, slightly tinted and grainy board, uint8 [n, H, W, 3]."""
    board = np.float32(rng.uniform(60, 100)) + rng.uniform(-8, 8, size=3).astype(np.float32)
    grain = rng.normal(0, 4, size=ink_nhw.shape).astype(np.float32)
    lit = board + ink_nhw[..., None] * (np.float32(245) - board) + grain[..., None]
    pixels: npt.NDArray[np.uint8] = lit.clip(0, 255).round().astype(np.uint8)
    return pixels
