"""`variety`: pictures of a prompt compared with each other."""

from __future__ import annotations

import pytest
import torch

from image_gen.rewards.variety import variety
from mmrl.data.records import Record


def flat(value: float) -> torch.Tensor:
    return torch.full((3, 2, 2), value)


def test_the_distance_to_the_others_of_the_prompt() -> None:
    a, b = Record("a", "image", "p"), Record("b", "image", "q")
    outputs = [flat(0.0), flat(1.0), flat(1.0), flat(0.2), flat(0.6)]
    found = variety(outputs, [a, a, a, b, b], [{}] * 5)
    assert found == pytest.approx([1.0, 0.5, 0.5, 0.4, 0.4])


def test_a_picture_alone_has_none_and_steps_are_apart() -> None:
    a = Record("a", "image", "p")
    assert variety([flat(0.3)], [a], [{}]) == [None]
    info = [{"decision": 0}, {"decision": 1}, {"decision": 0}, {"decision": 1}]
    assert variety([flat(0.0), flat(1.0), flat(0.0), flat(0.0)], [a] * 4, info) == pytest.approx([0.0, 1.0, 0.0, 1.0])
