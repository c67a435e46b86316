"""The embedded prompts: what is asked, what is kept for evaluation, and the pictures shown for imitation."""

import numpy as np
import pytest

from image_gen.embedded import canvas, prompts
from image_gen.embedded.words import LONGEST, VOCABULARY, split
from image_gen.rewards.composition_rules import read_spec
from mmrl.data.digits import LEVELS, load_digits
from mmrl.errors import UserError


def test_class_prompts() -> None:
    records = prompts.builtin("digits:class")
    assert [r.prompt for r in records[:2]] == ["a zero", "a one"] and records[8].prompt == "an eight"
    assert [r.answer for r in records] == list(range(10)) and {r.task for r in records} == {"digit"}


def test_composition_prompts() -> None:
    train, held = prompts.builtin("digits:compose"), prompts.builtin("digits:compose?split=eval")
    assert prompts.builtin("digits:compose?split=train") == train
    assert (len(train), len(held)) == (98, 22)
    texts = {r.prompt for r in train}, {r.prompt for r in held}
    assert not texts[0] & texts[1]
    assert {"two sevens", "three twos", "a three left of a five", "an eight left of a zero", "two sixes"} <= texts[0]
    assert {"two fours", "three sixes", "a one left of an eight"} <= texts[1]
    assert len({r.id for r in train + held}) == 120


def test_every_digit_is_trained_in_every_role() -> None:
    pairs = [tuple(r.answer["digits"]) for r in prompts.builtin("digits:compose") if r.meta["tag"] == "position"]
    for side in (0, 1):
        assert {pair[side] for pair in pairs} == set(range(10))


def test_specification_of_a_place() -> None:
    record = next(r for r in prompts.builtin("digits:compose") if r.prompt == "a three left of a five")
    assert record.answer == {"digits": [3, 5]}
    assert record.meta["include"] == [
        {"class": "five", "count": 1},
        {"class": "three", "count": 1, "position": ["left of", 0]},
    ]
    banned = {one["class"]: one["count"] for one in record.meta["exclude"]}
    assert banned["three"] == banned["five"] == 2 and banned["nine"] == 1 and len(banned) == 10
    assert read_spec(record.meta, "test") is not None


def test_all_words_are_known_and_used() -> None:
    every = prompts.builtin("digits:compose") + prompts.builtin("digits:compose?split=eval")
    words = {word for r in every for word in split(r.prompt)}
    assert words == set(VOCABULARY[1:])  # every word has been trained
    assert max(len(split(r.prompt)) for r in every) == LONGEST


def test_demonstrations_are_real_digits_of_the_training_part() -> None:
    known = {picture.tobytes() for picture in load_digits("train").images}
    records = prompts.builtin("digits:compose?demos=98&seed=3")
    for record in records:
        grey = np.asarray(record.images[0], dtype=np.float64)[:, :, 0]
        assert grey.shape == (8, 24)
        cells = [np.round(c * (LEVELS - 1) / 255).astype(np.uint8) for c in np.split(grey, canvas.CELLS, axis=1)]
        shown = [c for c in cells if c.any()]
        assert len(shown) == len(record.answer["digits"]) and all(c.tobytes() in known for c in shown)
    again = prompts.builtin("digits:compose?demos=5&seed=3")
    assert [np.asarray(r.images[0]).tobytes() for r in again] == [
        np.asarray(r.images[0]).tobytes() for r in records[:5]
    ]
    assert (
        np.asarray(prompts.builtin("digits:compose?demos=1&seed=4")[0].images[0]).tobytes()
        != np.asarray(records[0].images[0]).tobytes()
    )


def test_chance_is_the_best_constant_picture() -> None:
    assert prompts.chance(prompts.builtin("digits:class")) == {"judge": 0.1}
    assert prompts.chance(prompts.builtin("digits:compose?split=eval")) == {"judge": pytest.approx(1 / 22)}
    assert prompts.chance([]) == {}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digit:class", "unknown embedded prompts"),
        ("digits:clas", "did you mean 'class'"),
        ("digits:class?split=eval", "unknown option 'split'"),
        ("digits:compose?split=evl", "did you mean 'eval'"),
        ("digits:compose?", "unknown option ''"),
        ("digits:compose?demos", "write each option once"),
        ("digits:compose?demos=0", "from 1 to 999999"),
        ("digits:class?demos=2&seed=x", "seed must be a whole number"),
        ("digits:class?seed=1", "no effect without demos"),
        ("digits:compose?split=eval&demos=3", "no pictures of the prompts kept"),
    ],
)
def test_wrong_names(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        prompts.builtin(name)
