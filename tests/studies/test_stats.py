"""Means, spreads and intervals with literal numbers."""

import pytest
from study_stats import paired, spread, t_quantile


@pytest.mark.parametrize(
    "df, value", [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423), (200, 1.9719)]
)
def test_quantiles_of_students_t(df: int, value: float) -> None:
    assert t_quantile(df) == pytest.approx(value, abs=1e-4)


def test_spread() -> None:
    assert spread([1.0, 2.0, 6.0]) == {"n": 3, "mean": 3.0, "std": pytest.approx(7**0.5), "min": 1.0, "max": 6.0}
    assert spread([0.25])["std"] is None


def test_paired_differences() -> None:
    found = paired([0.5, 0.7, 0.6, 0.6, 0.6], [0.1, 0.2, 0.3, 0.2, 0.2])
    assert found["mean"] == pytest.approx(0.4)
    # std 0.07071, over sqrt 5 = 0.031623, times 2.7764 = 0.08780
    assert (found["low"], found["high"]) == (pytest.approx(0.3122, abs=1e-4), pytest.approx(0.4878, abs=1e-4))
    assert "low" not in paired([1.0], [0.5])
