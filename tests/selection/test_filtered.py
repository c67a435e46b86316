"""Which groups the filtered selector lets go on, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.selection.base import Seen, Selector, find
from mmrl.selection.filtered import Filtered
from mmrl.selection.uniform import Uniform

RECORDS = [Record(f"r{i}", "toy", "p") for i in range(7)]
NAN = math.nan


def make(**options: Any) -> Filtered:
    return Filtered(RECORDS, prompts=3, group=4, seed=0, **options)


def kept(prompt: list[int], correct: list[int] | None = None, reward: list[float] | None = None, **options: Any) -> Any:
    components = {k: torch.tensor(options.pop(k)) for k in ("tpf", "exact") if k in options}
    seen = Seen(
        torch.tensor(reward or [1.0] * len(prompt)),
        torch.tensor(prompt),
        components,
        None if correct is None else torch.tensor(correct).bool(),
    )
    return make(**options).keep_groups([], seen).int().tolist()


def test_nothing_asked_keeps_what_has_a_reward() -> None:
    assert kept([0, 0, 1, 1]) == [1, 1, 1, 1]
    assert kept([0, 0, 1, 1], reward=[1.0, NAN, NAN, NAN]) == [1, 1, 0, 0]


def test_spread_is_of_raw_values_inside_the_group() -> None:
    tpf = [2.0, 2.01, 2.0, 2.5, 9.0, 9.0]
    assert kept([0, 0, 1, 1, 2, 2], tpf=tpf, spread={"tpf": 0.25}) == [0, 0, 1, 1, 0, 0]
    assert kept([0, 0, 1, 1, 2, 2], tpf=tpf, spread={"tpf": 0.0}) == [1] * 6
    assert kept([0, 0, 1, 1, 2, 2], tpf=tpf, spread={"tpf": None}) == [1] * 6
    assert kept([0, 1, 0, 1, 1, 0], tpf=[1.0, 5.0, 3.0, 5.0, 5.0, 2.0], spread={"tpf": 2.0}) == [1, 0, 1, 0, 0, 1]
    # the larger end counts: exactly `least` is enough
    assert kept([0, 0], tpf=[1.0, 1.5], spread={"tpf": 0.5}) == [1, 1]


def test_a_component_that_does_not_apply_has_no_spread() -> None:
    assert kept([0, 0, 1, 1], tpf=[NAN, NAN, NAN, 3.0], spread={"tpf": 0.0}) == [0, 0, 1, 1]
    assert kept([0, 0, 0], tpf=[1.0, NAN, 4.0], spread={"tpf": 3.0}) == [1, 1, 1]


def test_several_tests_must_all_be_passed() -> None:
    tpf = [1.0, 2.0, 1.0, 2.0, 1.0, 1.0]
    answers = [0, 0, 1, 0, 1, 1]
    assert kept([0, 0, 1, 1, 2, 2], answers, tpf=tpf, spread={"tpf": 0.01}, need_correct=True) == [0, 0, 1, 1, 0, 0]
    # all answers right: kept where the speed differs
    assert kept([0, 0], [1, 1], tpf=[1.0, 2.0], spread={"tpf": 0.01}, need_correct=True) == [1, 1]


def test_the_share_of_right_answers_lies_between_two_bounds() -> None:
    prompt = [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    answers = [0] * 5 + [1, 0, 0, 0, 0] + [1, 1, 1, 1, 0] + [1] * 5
    assert kept(prompt, answers, share_correct=[0.2, 0.8]) == [0] * 5 + [1] * 10 + [0] * 5
    assert kept(prompt, answers, share_correct=[0.0, 0.2]) == [1] * 10 + [0] * 10
    reward = [1.0] * 5 + [1.0, NAN, NAN, NAN, NAN] + [1.0] * 10  # its one rewarded row is right
    assert kept(prompt, answers, reward, share_correct=[0.2, 0.8])[5:10] == [0] * 5


def test_prompts_come_as_from_uniform_and_the_state_is_the_same() -> None:
    one, plain = make(refill_rounds=3), Uniform(RECORDS, prompts=3, group=4, seed=0)
    assert [r.record.id for r in one.plan(0) + one.refill(2)] == [r.record.id for r in plain.plan(0) + plain.refill(2)]
    assert one.state_dict() == plain.state_dict()
    assert (one.refill_rounds, plain.refill_rounds) == (3, 0)
    assert one.filters and not plain.filters


COLUMNS = ["exact", "tpf"]


@pytest.mark.parametrize(
    ("options", "correct", "message"),
    [
        ({"spread": {"tfp": 0.01}}, True, "no reward component 'tfp' in this run; did you mean 'tpf'"),
        ({"spread": {"tpf": -1}}, True, "selection.options.spread.tpf: must be a number of at least 0"),
        ({"spread": {"tpf": "1"}}, True, "selection.options.spread.tpf"),
        ({"spread": [0.1]}, True, "selection.options.spread: expected component: least value"),
        ({"need_correct": True}, False, "selection.options.need_correct: no reward component says which"),
        ({"share_correct": [0.2, 0.8]}, False, "selection.options.share_correct: no reward component says which"),
        ({"need_correct": "yes"}, True, "selection.options.need_correct: must be true or false"),
        ({"share_correct": [0.8, 0.2]}, True, "must be [low, high]"),
        ({"share_correct": 0.5}, True, "must be [low, high]"),
        ({"share_correct": [0.2, 1.5]}, True, "must be [low, high]"),
        ({"refill_rounds": -1}, True, "selection.options.refill_rounds: must be a whole number"),
        ({"refill_rounds": True}, True, "selection.options.refill_rounds: must be a whole number"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], correct: bool, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Filtered.check(options, columns=COLUMNS, correct=correct)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_fitting_options_pass() -> None:
    Filtered.check({"spread": {"tpf": 0.01, "gone": None}, "need_correct": True}, columns=COLUMNS, correct=True)
    Filtered.check({}, columns=[], correct=False)
    Selector.check({"anything": 1}, columns=[], correct=False)
    assert find("filtered", {"spread": {}}) is Filtered
    with pytest.raises(UserError, match="did you mean 'spread'"):
        find("filtered", {"spred": {}})
