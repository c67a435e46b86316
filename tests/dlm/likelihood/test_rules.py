"""Rules of quadrature: the published numbers, exactness, and names that do not exist."""

from __future__ import annotations

import pytest

from dlm.likelihood.rules import rule
from mmrl.errors import UserError

NAMES = [*(f"gauss-{n}" for n in (1, 2, 3, 4, 5, 8)), "simpson", *(f"midpoint-{n}" for n in (1, 2, 3, 8))]


@pytest.mark.parametrize("name", NAMES)
def test_weights_sum_to_one_and_times_ascend(name: str) -> None:
    times, weights = rule(name)
    assert sum(weights) == pytest.approx(1, abs=1e-12) and len(times) == len(weights)
    assert list(times) == sorted(times) and times[0] > 0 and times[-1] <= 1


@pytest.mark.parametrize("n", range(1, 9))
def test_gauss_is_exact_up_to_degree_2n_minus_1_and_not_beyond(n: int) -> None:
    times, weights = rule(f"gauss-{n}")
    for degree in range(2 * n):
        assert sum(w * t**degree for t, w in zip(times, weights)) == pytest.approx(1 / (degree + 1), abs=1e-12)
    beyond = sum(w * t ** (2 * n) for t, w in zip(times, weights))
    assert abs(beyond - 1 / (2 * n + 1)) > 1e-10


def test_published_times_and_weights() -> None:
    assert rule("gauss-1") == ((0.5,), (1.0,))
    assert rule("gauss-2")[0] == pytest.approx((0.2113248654, 0.7886751346), abs=1e-10)
    assert rule("gauss-3")[0] == pytest.approx((0.1127016654, 0.5, 0.8872983346), abs=1e-10)
    assert rule("gauss-3")[1] == pytest.approx((5 / 18, 8 / 18, 5 / 18), abs=1e-12)
    assert rule("gauss-5")[1] == pytest.approx((0.118463, 0.239314, 0.284444, 0.239314, 0.118463), abs=1e-6)
    assert rule("simpson") == ((0.1, 0.5, 1.0), (1 / 6, 4 / 6, 1 / 6))
    assert rule("midpoint-4") == ((0.125, 0.375, 0.625, 0.875), (0.25,) * 4)


@pytest.mark.parametrize("name", ["gauss", "gauss-0", "gauss-65", "midpoint-1.5", "gaus-3", "simpsons", ""])
def test_unknown_rules_are_named_with_valid_ones(name: str) -> None:
    with pytest.raises(UserError, match="unknown rule.*(did you mean|valid)"):
        rule(name)
