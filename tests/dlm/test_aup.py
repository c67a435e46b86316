"""Accuracy over tokens per forward in one number."""

from __future__ import annotations

import math

import pytest

from dlm.metrics import aup


def test_the_worked_example() -> None:
    """W = 1, .963194, .860708."""
    points = [(1.0, 80.0), (2.0, 79.0), (4.0, 76.0)]
    assert aup(points, y_max=80.0) == pytest.approx(299.5523, abs=5e-5)
    assert aup(points) == aup(list(reversed(points))) == aup(points, y_max=80.0)


def test_one_point_is_its_product_and_none_is_nothing() -> None:
    assert aup([(2.85, 88.9)]) == pytest.approx(2.85 * 88.9)
    assert aup([]) == 0.0 and aup([(1.0, 0.0), (2.0, 0.0)]) == 0.0


def test_points_more_than_five_below_the_first_do_not_count() -> None:
    first = [(1.0, 80.0), (2.0, 79.0)]
    assert aup([*first, (9.0, 74.9)]) == aup(first) < aup([*first, (9.0, 75.0)])


def test_accuracy_lost_on_the_way_costs_more_than_the_plain_area() -> None:
    points = [(1.0, 80.0), (3.0, 77.0)]
    assert 80.0 <= aup(points) < 80.0 + 0.5 * 2 * (80 + 77)
    assert aup([(1.0, 80.0), (3.0, 80.0)]) == pytest.approx(3 * 80.0)


def test_a_better_method_elsewhere_lowers_the_area_but_never_the_start() -> None:
    points = [(1.0, 80.0), (2.0, 80.0)]
    assert aup(points, y_max=90.0) == pytest.approx(80.0 + 80.0 * math.exp(-3 * (1 - 80 / 90)))
    assert aup(points, y_max=70.0) == pytest.approx(160.0)  # no weight above 1
