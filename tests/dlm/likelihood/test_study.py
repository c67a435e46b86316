"""The scorers of the estimator study know their ELBO, and the stored numbers are those of the page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dlm.likelihood import exact

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT))

from benchmarks import dlm_estimators, dlm_figure, dlm_scorers, harness  # noqa: E402


@pytest.mark.parametrize("seed", range(3))
def test_the_finite_sums_are_the_enumeration(seed: int) -> None:
    chain = dlm_scorers.Chain(seed, length=9, tokens=6)
    assert chain.elbo() == pytest.approx(exact.elbo(chain, 9), abs=1e-10)

    class Short(dlm_scorers.Smooth):
        length = 11

    smooth = Short(seed)
    assert smooth.elbo() == pytest.approx(exact.elbo(smooth, 11), abs=1e-10)


def test_a_chain_scored_by_its_own_conditionals_has_no_gap() -> None:
    chain = dlm_scorers.Chain(1)
    assert chain.elbo() == pytest.approx(chain.log_likelihood(), abs=1e-9)


def test_the_stored_study_reaches_its_target_and_fills_the_page(tmp_path: Path) -> None:
    result = harness.read("dlm_estimators")
    assert result is not None and not result["quick"]
    assert dlm_estimators.advantage(result, "c") >= 4
    assert dlm_estimators.page(result) in (ROOT / "docs" / "dlm_estimators.md").read_text(encoding="utf-8")
    dlm_figure.draw(result, dlm_estimators.CASES, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text() == (ROOT / "docs" / "figures" / "dlm_estimators.svg").read_text()


def test_every_draw_of_the_study_can_be_made() -> None:
    scorers = [dlm_scorers.Chain(0, length=8)]
    for label, build in dlm_estimators.ESTIMATORS.items():
        for forwards in dlm_estimators.BUDGETS:
            case = build(forwards)
            if case is not None:
                found = dlm_estimators.estimates(case, scorers, 8, 3)
                assert found.shape == (1, 3) and bool((found <= 0).all()), label
