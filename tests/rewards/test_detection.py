"""Visual-RFT's detection rewards: the worked example, the edge cases and the invariants."""

import random
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mmrl.data.boxtext import Detection
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.detection import (
    confidence_reward,
    confidence_score,
    iou_reward,
    iou_score,
    match,
    with_confidence,
)
from mmrl.rewards.format import format_reward
from mmrl.rewards.parse import boxes

GT = [[0, 0, 100, 100], [200, 200, 300, 300]]
PREDICTIONS = [([0, 0, 100, 80], 0.9), ([210, 210, 310, 310], 0.6), ([500, 500, 520, 520], 0.3)]


def say(predictions):
    listed = ", ".join(f"{{'Position': {list(box)}, 'Confidence': {c}}}" for box, c in predictions)
    return f"<think>x</think><answer>[{listed}]</answer>"


def record(answer=GT):
    return Record("r", "detection", "find", answer=answer)


def one(reward, output, answer=GT, **options):
    return reward([output], [record(answer)], [{}], **options)[0]


def test_worked_example():
    output = say(PREDICTIONS)
    assert match(with_confidence(boxes(output)), [Detection(tuple(b)) for b in GT]) == pytest.approx(
        [0.8, 0.680672, 0.0], abs=1e-6
    )
    v2, v1 = one(iou_reward, output), one(iou_reward, output, divisor="predictions")
    assert v2 == pytest.approx(0.493557, abs=1e-6) and v1 == v2
    assert one(confidence_reward, output) == pytest.approx(0.733333, abs=1e-6)
    total = v2 + one(confidence_reward, output) + one(format_reward, output)
    assert total == pytest.approx(2.226891, abs=1e-6)


def test_the_divisors_differ_when_boxes_are_missing():
    output = say(PREDICTIONS[:1])
    assert one(iou_reward, output) == pytest.approx(0.4)
    assert one(iou_reward, output, divisor="predictions") == pytest.approx(0.8)


def test_answers_in_both_spellings_are_equal():
    spelled = [{"Position": box, "Confidence": 1} for box in GT]
    text = f"<answer>{[{'Position': b, 'Confidence': 1} for b in GT]}</answer>"
    for answer in (spelled, text):
        assert one(iou_reward, say(PREDICTIONS), answer) == one(iou_reward, say(PREDICTIONS))


def test_threshold_is_strict():
    half = say([([0, 0, 100, 50], 0.9)])
    assert one(iou_reward, half, [[0, 0, 100, 100]]) == 0.0
    assert one(iou_reward, half, [[0, 0, 100, 100]], tau=0.49) == 0.5
    assert one(confidence_reward, half, [[0, 0, 100, 100]]) == pytest.approx(0.1)


def test_duplicates_keep_the_first_with_its_confidence():
    output = say([([0, 0, 100, 100], 0.2), ([0, 0, 100, 100], 0.9)])
    assert one(iou_reward, output, [[0, 0, 100, 100]]) == 1.0
    assert one(confidence_reward, output, [[0, 0, 100, 100]]) == pytest.approx(0.2)


def test_confidence_decides_who_matches_first_and_ties_are_stable():
    near, exact = [0, 0, 100, 90], [0, 0, 100, 100]
    assert one(iou_reward, say([(exact, 0.5), (near, 0.9)]), [exact]) == pytest.approx(0.45)
    assert one(iou_reward, say([(exact, 0.5), (near, 0.5)]), [exact]) == pytest.approx(0.5)
    # the first prediction overlaps both answers equally and takes the first one, which the second then misses
    said = [Detection((2, 0, 12, 10), 0.9), Detection((0, 0, 10, 10), 0.8)]
    assert match(said, [Detection((0, 0, 10, 10)), Detection((4, 0, 14, 10))]) == pytest.approx([2 / 3, 0.0])
    assert match(said, [Detection((4, 0, 14, 10)), Detection((0, 0, 10, 10))]) == pytest.approx([2 / 3, 1.0])


def test_an_unmatched_prediction_takes_no_answer_box():
    # the first prediction overlaps too little; the box must stay free for the second
    output = say([([0, 0, 100, 40], 0.9), ([0, 0, 100, 100], 0.5)])
    assert one(iou_reward, output, [[0, 0, 100, 100]]) == pytest.approx(0.5)


def test_nothing_there():
    yes, empty, wrong = "<answer>No Objects</answer>", "<answer>[]</answer>", say(PREDICTIONS)
    for reward in (iou_reward, confidence_reward):
        assert one(reward, yes, []) == one(reward, empty, []) == one(reward, yes, "No Objects") == 1.0
        assert one(reward, "<answer>a bus</answer>", []) == one(reward, "", []) == 0.0  # unreadable is not "nothing"
        assert one(reward, yes, GT) == one(reward, empty, GT) == one(reward, "", GT) == 0.0
    assert one(iou_reward, wrong, []) == 0.0
    assert one(confidence_reward, wrong, []) == pytest.approx((0.1 + 0.4 + 0.7) / 3)


def test_confidence_outside_its_range_is_clipped_after_the_mean():
    assert confidence_score([1.0, 0.0], [3.0, 0.5]) == 1.0
    assert confidence_score([1.0, 0.0], [-1.0, 0.5]) == 0.0
    assert confidence_score([1.0, 0.0], [1.4, 0.6]) == pytest.approx(0.9)
    assert confidence_score([], []) == 0.0 and iou_score([], 3) == 0.0


def test_a_record_without_confidence_is_dropped_unless_told():
    output = "<answer>[{'Position': [0, 0, 100, 100]}]</answer>"
    assert one(iou_reward, output, [[0, 0, 100, 100]]) == 0.0
    assert one(iou_reward, output, [[0, 0, 100, 100]], default_confidence=1.0) == 1.0


def test_the_known_hack_and_its_guard():
    output = say([([500, 500, 520, 520], 0.0)])
    assert one(confidence_reward, output) == 1.0  # as published
    assert one(confidence_reward, output, need_match=True) == 0.0
    assert one(confidence_reward, say(PREDICTIONS), need_match=True) == one(confidence_reward, say(PREDICTIONS))


def test_official_parser_gives_nothing_for_an_answer_of_several_lines():
    output = say(PREDICTIONS).replace("}, ", "},\n")
    assert one(format_reward, output) == 1.0
    assert one(iou_reward, output, parser="official") == 0.0
    assert one(iou_reward, output) == pytest.approx(0.493557, abs=1e-6)
    assert one(iou_reward, say(PREDICTIONS), parser="official") == pytest.approx(0.493557, abs=1e-6)


def test_degenerate_and_non_finite_predictions():
    assert one(iou_reward, say([([100, 100, 0, 0], 0.9)])) == 0.0
    output = say(PREDICTIONS).replace("[500, 500, 520, 520]", "[NaN, 500, 520, 520]")
    assert one(iou_reward, output) == pytest.approx((0.8 + 0.680672) / 2, abs=1e-6)


def test_a_bad_answer_is_named():
    with pytest.raises(UserError, match="record 'r'.*bare box"):
        one(iou_reward, say(PREDICTIONS), [0, 0, 1, 1])


coordinate = st.integers(0, 60)
raw_box = st.tuples(coordinate, coordinate, coordinate, coordinate)
prediction = st.tuples(raw_box.map(list), st.floats(-0.5, 1.5).map(lambda c: round(c, 2)))


@given(st.lists(prediction, max_size=6), st.lists(raw_box.map(list), max_size=5), st.floats(0, 0.9))
def test_invariants(predictions, truth, tau):
    output = say(predictions)
    v2 = one(iou_reward, output, truth, tau=tau)
    v1 = one(iou_reward, output, truth, tau=tau, divisor="predictions")
    assert 0 <= v2 <= v1 <= 1
    assert 0 <= one(confidence_reward, output, truth, tau=tau) <= 1
    used = with_confidence(boxes(output))
    if truth and len(used) >= len(truth):
        assert v1 == v2
    scores = match(used, [Detection(tuple(b)) for b in truth], tau=tau)
    assert sum(s > 0 for s in scores) <= len(truth)  # no answer box is used twice


@given(st.lists(prediction, min_size=1, max_size=5), st.lists(raw_box.map(list), min_size=1, max_size=4), st.randoms())
def test_order_changes_nothing(predictions, truth, rng):
    assume(len({c for _, c in predictions}) == len(predictions))
    assume(len({tuple(b) for b, _ in predictions}) == len(predictions))
    value = one(iou_reward, say(predictions), truth), one(confidence_reward, say(predictions), truth)
    shuffled = rng.sample(predictions, len(predictions))
    assert one(iou_reward, say(shuffled), truth) == pytest.approx(value[0])
    assert one(confidence_reward, say(shuffled), truth) == pytest.approx(value[1])


@given(st.permutations(range(4)))
def test_order_of_the_answer_changes_nothing_without_ties(order):
    truth = [[0, 0, 10, 10], [20, 0, 31, 10], [40, 0, 52, 10], [60, 0, 73, 10]]
    predictions = [([0, 0, 10, 9], 0.9), ([20, 0, 30, 10], 0.8), ([1, 0, 10, 10], 0.7), ([61, 0, 73, 10], 0.6)]
    output = say(predictions)
    assert one(iou_reward, output, [truth[i] for i in order]) == pytest.approx(one(iou_reward, output, truth))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5, unique=True))
def test_perfect_boxes(cells):
    truth = [[100 * x, 100 * y, 100 * x + 90, 100 * y + 80] for x, y in cells]
    output = say([(box, 1.0) for box in truth])
    assert one(iou_reward, output, truth) == one(confidence_reward, output, truth) == 1.0


def test_ten_thousand_completions_in_two_seconds():
    rng = random.Random(0)
    outputs = [
        say([([rng.randrange(500), rng.randrange(500), 600, 600], rng.random()) for _ in range(3)])
        for _ in range(10_000)
    ]
    records, info = [record()] * len(outputs), [{}] * len(outputs)
    start = time.process_time()
    for reward in (iou_reward, confidence_reward, format_reward):
        reward(outputs, records, info)
    assert time.process_time() - start < 2.0
