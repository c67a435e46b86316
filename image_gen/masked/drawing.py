"""What people see of a decoded canvas: how it was filled, and the schedule it was filled by.

Axes: N canvases, L = h * w positions, T decoding steps, V = 4 schedule variables.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from image_gen.masked.config import VARIABLES
from image_gen.masked.rows import Decoding

#: Pixels: the longer side of a frame at most, the gap between two, the whole strip at most (the page shows no more).
SIDE, GAP, WIDTH = 64, 1, 384
FRAMES = 13
OPEN, RULE = (143, 163, 196), (84, 102, 133)


def filling(picture: Tensor, steps_l: Tensor, *, grid: tuple[int, int], n_steps: int) -> Image.Image:
    """The canvas before the first step and after some of the steps, evenly spaced, the last one whole; side by side.

    picture: float [3, H, W] in [0, 1]. steps_l: the step that filled each position, -1 = given. A cell that is still
    open is grey-blue; the others show the final picture: for a decoder that looks at neighbours, not what it would have
    made of the half-filled canvas. Large pictures are made smaller.
    """
    whole = _whole(picture)
    most = max(2, min(FRAMES, (WIDTH + GAP) // (whole.width + GAP)))
    shown = [_frame(whole, (steps_l < done).reshape(grid)) for done in evenly(n_steps, most)]
    strip = Image.new("RGB", (len(shown) * (whole.width + GAP) - GAP, whole.height), RULE)
    for number, frame in enumerate(shown):
        strip.paste(frame, (number * (whole.width + GAP), 0))
    return strip


def evenly(n_steps: int, most: int) -> list[int]:
    """0 .. n_steps, at most `most` (2 or more) of them, the first and the last among them."""
    if n_steps < most:
        return list(range(n_steps + 1))
    return [round(i * n_steps / (most - 1)) for i in range(most)]


def _whole(picture: Tensor) -> Image.Image:
    from torchvision.transforms.functional import to_pil_image

    image: Image.Image = to_pil_image(picture.float().clamp(0, 1)).convert("RGB")
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    return image


def _frame(whole: Image.Image, filled_hw: Tensor) -> Image.Image:
    mask = Image.fromarray((filled_hw.to(torch.uint8) * 255).numpy()).resize(whole.size, Image.Resampling.NEAREST)
    return Image.composite(whole, Image.new("RGB", whole.size, OPEN), mask)


def profiles(rows: Sequence[Decoding], *, base_tv: Tensor) -> dict[str, dict[str, list[float]]]:
    """By variable (`image_gen.masked.config.VARIABLES`), over the decoding steps:

    x       (t + 1) / T, the share of the steps that is done after this one.
    mean    of the values that the canvases were decoded with; spread: their population deviation, 0 for a table.
    base    the hand-made schedule's values.

    rows: canvases of one step count, decoded with the schedule's mean. base_tv: [T, V]. Raises ValueError for rows of
    several step counts, and for none.
    """
    counts = {row.n_steps for row in rows}
    if counts != {len(base_tv)}:
        raise ValueError(f"canvases of one step count {len(base_tv)} are needed, got {sorted(counts)}")
    value_ntv = torch.stack([row.value for row in rows]).double()
    spread_tv, mean_tv = torch.std_mean(value_ntv, 0, correction=0)
    steps = len(base_tv)
    x = [(t + 1) / steps for t in range(steps)]
    tables = {"mean": mean_tv, "spread": spread_tv, "base": base_tv}
    return {
        name: {"x": x} | {key: [_short(v) for v in table[:, column].tolist()] for key, table in tables.items()}
        for column, name in enumerate(VARIABLES)
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")
