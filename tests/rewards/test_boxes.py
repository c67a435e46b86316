"""Literal values and properties of IoU and GIoU."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.rewards.boxes import giou, iou

number = st.integers(-1000, 2000) | st.floats(-1e3, 2e3)
anything = st.tuples(number, number, number, number)


@st.composite
def real_box(draw):
    x, y = draw(st.integers(0, 900)), draw(st.integers(0, 900))
    return float(x), float(y), float(x + draw(st.integers(1, 100))), float(y + draw(st.integers(1, 100)))


def test_literals():
    assert iou((0, 0, 100, 100), (0, 0, 100, 80)) == 0.8
    assert iou((200, 200, 300, 300), (210, 210, 310, 310)) == pytest.approx(0.680672, abs=1e-6)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0  # touching
    # side by side with a gap of one box: I 0, U 2, C 3
    assert giou((0, 0, 1, 1), (2, 0, 3, 1)) == pytest.approx(-1 / 3)
    assert giou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7 - 2 / 9)


def test_degenerate_boxes_score_nothing():
    good = (0.0, 0.0, 10.0, 10.0)
    for bad in [(10, 0, 0, 10), (0, 10, 10, 0), (10, 10, 0, 0), (5, 5, 5, 5), (0, 5, 10, 5)]:
        assert iou(good, bad) == iou(bad, good) == iou(bad, bad) == 0.0
    assert giou(good, (10, 10, 0, 0)) == -1.0
    assert giou((5, 5, 5, 5), (5, 5, 5, 5)) == 0.0  # C has no area: the IoU alone
    assert giou(good, (5, 5, 5, 5)) == 0.0  # a point inside: C = U


def test_huge_numbers_do_not_become_nan():
    huge = (-1e200, -1e200, 1e200, 1e200)
    assert iou(huge, huge) == 0.0
    assert giou(huge, huge) == -1.0


@given(anything, anything)
def test_ranges_and_symmetry(a, b):
    assert 0.0 <= iou(a, b) <= 1.0 and iou(a, b) == iou(b, a)
    assert -1.0 <= giou(a, b) <= 1.0 and giou(a, b) == giou(b, a)


@given(real_box(), real_box(), st.floats(0.1, 10), st.floats(0.1, 10))
def test_identity_order_and_scaling(a, b, sx, sy):
    assert iou(a, a) == 1.0 and giou(a, a) == 1.0
    assert giou(a, b) <= iou(a, b) + 1e-12
    scaled = [(x1 * sx, y1 * sy, x2 * sx, y2 * sy) for x1, y1, x2, y2 in (a, b)]
    assert iou(*scaled) == pytest.approx(iou(a, b), abs=1e-9)
    assert giou(*scaled) == pytest.approx(giou(a, b), abs=1e-9)
