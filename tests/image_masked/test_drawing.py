"""How a canvas was filled, as a strip; and a schedule as numbers over the steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from image_gen.masked.drawing import GAP, OPEN, RULE, WIDTH, evenly, filling, profiles
from image_gen.masked.rows import Decoding


def frames(strip: Image.Image, width: int) -> list[np.ndarray]:
    pixels = np.asarray(strip)
    return [pixels[:, at : at + width] for at in range(0, pixels.shape[1], width + GAP)]


def test_open_cells_are_covered_and_the_last_frame_is_the_picture() -> None:
    picture = torch.linspace(0, 1, 12).reshape(3, 2, 2)
    strip = filling(picture, torch.tensor([1, -1, 0, 2]), grid=(2, 2), n_steps=3)
    assert strip.size == (4 * 2 + 3 * GAP, 2)
    whole = (picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    for done, frame in enumerate(frames(strip, 2)):
        for cell, step in enumerate((1, -1, 0, 2)):
            expected = whole[cell // 2, cell % 2] if step < done else OPEN
            assert tuple(frame[cell // 2, cell % 2]) == tuple(expected)
    assert all(tuple(np.asarray(strip)[y, 2]) == RULE for y in range(2))


def test_cells_of_large_pictures_keep_their_places() -> None:
    strip = filling(torch.ones(3, 256, 128), torch.tensor([0, 1]), grid=(1, 2), n_steps=2)
    first, half, last = frames(strip, 32)
    assert first.shape == (64, 32, 3) and strip.width <= WIDTH
    assert (first == OPEN).all() and (last == 255).all()
    assert (half[:, :16] == 255).all() and (half[:, 16:] == OPEN).all()


@pytest.mark.parametrize(("steps", "most"), [(1, 2), (5, 6), (5, 5), (64, 13), (1000, 2)])
def test_frames_are_few_and_hold_both_ends(steps: int, most: int) -> None:
    found = evenly(steps, most)
    assert (found[0], found[-1]) == (0, steps) and len(found) == min(most, steps + 1) and found == sorted(set(found))


def row(value: list[list[float]]) -> Decoding:
    t = len(value)
    return Decoding("a", torch.zeros(4), torch.zeros(4), torch.zeros(t, 4), torch.tensor(value), torch.ones(4))


def test_profiles_are_means_over_canvases() -> None:
    base = torch.tensor([[0.5, 2.0, 1.0, 3.0], [0.0, 0.0, 1.0, 3.0]])
    found = profiles([row([[0.25, 2, 1, 4], [0, 0, 1, 3]]), row([[0.75, 2, 1, 5], [0, 0, 1, 3]])], base_tv=base)
    assert found["ratio"] == {"x": [0.5, 1.0], "mean": [0.5, 0.0], "spread": [0.25, 0.0], "base": [0.5, 0.0]}
    assert found["guidance"] == {"x": [0.5, 1.0], "mean": [4.5, 3.0], "spread": [0.5, 0.0], "base": [3.0, 3.0]}
    assert list(found) == ["ratio", "remask", "sample", "guidance"]


def test_other_step_counts_are_refused() -> None:
    one, two = row([[0.0] * 4]), row([[0.0] * 4] * 2)
    for rows in ([one, two], [two], []):
        with pytest.raises(ValueError, match="one step count 1 are needed"):
            profiles(rows, base_tv=torch.zeros(1, 4))
