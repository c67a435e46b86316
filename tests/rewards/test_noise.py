"""Detection rewards on what a model may write before it has learned: scores in range, no exception, linear time."""

from __future__ import annotations

import math
import random
import time

import pytest

from mmrl.data.records import Record
from mmrl.rewards import registry

SEED = 20
GOOD = (
    "<think>two</think><answer>[{'Position': [1, 2, 30, 40], 'Confidence': 0.9}, {'Position': [5, 5, 9, 9]}]</answer>"
)
PIECES = [
    *"[](){}<>'\"`,:;.-+eE\\/|_ \n\t\r\0", *"0123456789", "[[", "]]", "},", "{'", "```json\n", "...", "<think>",
    "</think>", "<answer>", "</answer>", "'Position'", '"Confidence"', "bbox_2d", "[1,2,3,4]", GOOD, "9" * 400,
    "NaN", "-Infinity", "1e999", "-1e-999", "None", "True", "No Objects",
    "\u202e", "\ud800", "\U0001f600", "猫", "İ", "½", "٣", "\u2028",
]  # fmt: skip
COMPONENTS = [
    ("iou", {}),
    ("iou", {"parser": "official", "default_confidence": 0.5}),
    ("confidence", {"need_match": True}),
    ("format", {}),
    ("weighted_sum", {}),
    ("ap", {}),
    ("od_length", {}),
]


def noise(rng: random.Random) -> str:
    """Pieces in any order, or a good completion with some characters lost, doubled or replaced."""
    if rng.random() < 0.6:
        return "".join(rng.choices(PIECES, k=rng.randrange(60)))
    text = list(GOOD)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(text))
        text[at : at + rng.randrange(3)] = rng.choice(PIECES)
    return "".join(text[: rng.randrange(len(text) + 1)] if rng.random() < 0.5 else text)


def scored(outputs: list[str]) -> list[float]:
    records = [Record("r", "detection", "?", answer=[[1, 2, 30, 40], [5, 5, 9, 9]])] * len(outputs)
    found = []
    for name, options in COMPONENTS:
        values = registry.find(name).function(outputs, records, [{}] * len(outputs), **options)
        assert len(values) == len(outputs)
        found += values
    return found


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_any_string_gets_a_score(count: int) -> None:
    rng = random.Random(SEED)
    values = scored([noise(rng) for _ in range(count)])
    assert all(isinstance(v, float) and math.isfinite(v) and 0 <= v <= 1 for v in values)
    assert 0 < sum(v > 0 for v in values) < len(values)  # some of it is still readable


def test_every_beginning_of_a_good_answer_gets_a_score() -> None:
    values = scored([GOOD[:n] for n in range(len(GOOD) + 1)])
    assert all(0 <= v <= 1 for v in values)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_twice_the_text_takes_twice_the_time(seed: int) -> None:
    """100,000 characters of few repeated pieces against 200,000; quadratic time would show as 4."""
    unit = "".join(random.Random(seed).choices(PIECES, k=5))

    def seconds(length: int) -> float:
        text = [(unit * length)[:length], "<answer>[" + (unit * length)[:length]]
        spent = []
        for _ in range(3):
            start = time.process_time()
            scored(text)
            spent.append(time.process_time() - start)
        return min(spent)

    assert seconds(200_000) < 3 * seconds(100_000) + 0.05
