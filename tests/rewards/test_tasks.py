"""Label, grounding, counting, overlong and referring-expression rewards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrl.core.shaping import overlong_penalty
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.classification import label_reward, label_score
from mmrl.rewards.counting import count_reward
from mmrl.rewards.grounding import giou_reward
from mmrl.rewards.overlong import overlong_reward, overlong_score
from mmrl.rewards.rec import iou_beyond_a_pixel, rec_iou_reward


def one(reward, output, answer, *, info=None, frame="norm1000", meta=None, **options):
    record = Record("r", "any", "p", answer=answer, frame=frame, meta=meta or {})
    return reward([output], [record], [info or {}], **options)[0]


def tags(answer):
    return f"<think>t</think><answer>{answer}</answer>"


def test_labels_are_equal_after_normalisation():
    assert one(label_reward, tags("a 380"), "A_380") == 1.0
    assert one(label_reward, tags("A381"), "A380") == 0.0
    assert one(label_reward, tags("\nA380\n"), "A380") == 1.0
    assert one(label_reward, "A380", "A380") == 1.0
    assert one(label_reward, tags("7"), 7) == 1.0
    assert one(label_reward, tags("lorry"), ["truck", "lorry"]) == 1.0
    assert one(label_reward, tags("car"), ["truck", "lorry"]) == 0.0


def test_the_strict_rule_refuses_what_the_containment_rule_lets_through():
    for hack in ("", " _ ", "BMW", "BMW X5 or Audi A4 or A380"):
        assert one(label_reward, tags(hack), "BMW X5") == 0.0
        assert one(label_reward, tags(hack), "BMW X5", match="containment") == 1.0
    assert label_score("", "") == label_score("_", " ") == 0.0
    assert one(label_reward, tags("Audi"), "BMW X5", match="containment") == 0.0
    assert one(label_reward, "", "A380") == 0.0 and one(label_reward, "", "A380", match="containment") == 1.0


def test_an_empty_label_is_refused():
    with pytest.raises(UserError, match="record 'r': answer is an empty label"):
        one(label_reward, tags("x"), " _")


def test_grounding_literals():
    assert one(giou_reward, tags("(10,20),(110,220)"), [10, 20, 110, 220]) == 2.0
    # I 0, U 2, C 3
    assert one(giou_reward, tags("(0,0),(100,100)"), [200, 0, 300, 100]) == pytest.approx(1 - 1 / 3)
    assert one(giou_reward, tags("no idea"), [10, 20, 110, 220]) == 0.0
    assert one(giou_reward, "", [10, 20, 110, 220]) == 0.0
    assert one(giou_reward, tags("[10, 20, 110, 220]"), [10, 20, 110, 220]) == 2.0


def test_grounding_takes_the_first_box_and_refuses_swapped_corners():
    assert one(giou_reward, tags("(10,20),(110,220),(500,500),(600,600)"), [10, 20, 110, 220]) == 2.0
    assert one(giou_reward, tags("(110,220),(10,20)"), [10, 20, 110, 220]) == 0.0


def test_equal_text_is_two_even_for_a_box_without_area():
    text = "(10,20),(10,20)"
    assert one(giou_reward, tags(f" {text} "), f"<answer>{text}</answer>") == 2.0
    assert one(giou_reward, tags(text), [10, 20, 10, 20]) == 1.0


corner = st.integers(0, 1000)


@given(corner, corner, corner, corner)
def test_grounding_range(x1, y1, x2, y2):
    assert 0.0 <= one(giou_reward, tags(f"({x1},{y1}),({x2},{y2})"), [100, 200, 300, 400]) <= 2.0


def test_counting():
    assert one(count_reward, tags(" 3. "), 3) == one(count_reward, tags("3.0"), "3") == 1.0
    assert one(count_reward, tags("2"), 3) == one(count_reward, tags("three"), 3) == one(count_reward, "", 0) == 0.0
    assert one(count_reward, tags("There are 3"), 3) == 0.0
    assert one(count_reward, tags("3"), 4, shape="linear") == 0.75
    assert one(count_reward, tags("9"), 4, shape="linear") == 0.0
    assert one(count_reward, tags("0"), 0, shape="linear") == 1.0
    with pytest.raises(UserError, match="whole number"):
        one(count_reward, tags("3"), "many")


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0)]
)
def test_overlong(length, penalty):
    assert overlong_score(length, max_length=100, cache=20) == pytest.approx(penalty)
    assert one(overlong_reward, "", None, info={"length": length}, max_length=100, cache=20) == pytest.approx(penalty)
    tensor = overlong_penalty(length_n=torch.tensor([float(length)], dtype=torch.float64), max_length=100, cache=20)
    assert tensor.item() == pytest.approx(penalty)


def test_overlong_refuses_a_cache_larger_than_the_limit():
    with pytest.raises(UserError, match="cache"):
        one(overlong_reward, "", None, info={"length": 1}, max_length=10, cache=20)


def test_referring_expression_converts_model_pixels():
    # the model saw 280 x 140 pixels of a picture of 560 x 560
    sizes = {"original_size": [560, 560], "model_size": (280, 140)}
    answer, output = [100, 200, 300, 400], tags("the box [50, 50, 150, 100], or [0,0,1,1]")
    common = {"frame": "pixel_original", "predicted_frame": "pixel_model_input"}
    assert one(rec_iou_reward, output, answer, info=sizes, **common) == pytest.approx(1.0)
    assert one(rec_iou_reward, output, answer, meta=sizes, **common) == pytest.approx(1.0)
    assert one(rec_iou_reward, output, answer, frame="pixel_original") < 0.2
    with pytest.raises(UserError, match="record 'r'.*needs model_size"):
        one(rec_iou_reward, output, answer, **common)
    with pytest.raises(UserError, match="model_size must be"):
        one(rec_iou_reward, output, answer, info={"model_size": 3}, **common)


def test_referring_expression_metrics():
    answer = [0, 0, 100, 100]
    assert one(rec_iou_reward, tags("[0, 0, 100, 50]"), answer, metric="iou50") == 0.0
    assert one(rec_iou_reward, tags("[0, 0, 100, 51]"), answer, metric="iou50") == 1.0
    assert one(rec_iou_reward, tags("nothing"), answer) == 0.0
    assert one(rec_iou_reward, tags("[0, 99, 100, 200]"), answer) > 0.0
    assert one(rec_iou_reward, tags("[0, 99, 100, 200]"), answer, metric="iou_pixel") == 0.0


def test_pixel_iou_is_the_peers_arithmetic():
    def peer(a, b):
        x1, y1, x2, y2 = max(a[0], b[0]), max(a[1], b[1]), min(a[2] - 1, b[2] - 1), min(a[3] - 1, b[3] - 1)
        inside = (x2 - x1 + 1) * (y2 - y1 + 1) if x1 < x2 and y1 < y2 else 0
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside
        return inside / union

    fixed = (10, 10, 30, 30)
    for x in range(40):
        for y in (0, 9, 11, 28, 29, 30):
            box = (x, y, x + 12, y + 7)
            assert iou_beyond_a_pixel(fixed, box) == pytest.approx(peer(fixed, box))
