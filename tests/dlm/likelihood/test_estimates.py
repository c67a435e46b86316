"""Estimators against the exact ELBO, worked numbers, and the slips of released codes that live here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from likelihood_toys import context_scorer, estimate, every_draw, full_rows, pick, ragged

from dlm.likelihood import draws, exact
from dlm.likelihood.registry import make
from dlm.likelihood.sdmc import masked_counts
from mmrl.errors import UserError

LP = torch.tensor([[-0.5, -1.0, -0.2, -0.3]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"weighting": "1/t", "clamped": "1/t"}, -3.5071797),
        ({"weighting": "L/k"}, -3.2),
        ({"weighting": "1/t"}, -0.5 * 4 - 0.5 / 0.7886751345948129 * 1.8),  # L/k where floor(0.845) is lifted to 1
    ],
)
def test_worked_example_of_sdmc(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], want: float) -> None:
    """gauss-2, L = 4: the first time masks position 1, the second positions 0, 1 and 3."""
    orders = iter([[0.5, 0.1, 0.7, 0.9], [0.1, 0.2, 0.9, 0.3]])
    monkeypatch.setattr(draws, "uniform_nl", lambda *_: torch.tensor([next(orders)], dtype=torch.float64))
    estimator = make("sdmc", {"rule": "gauss-2", **options})
    views = estimator.views(full_rows(1, 4))
    assert [v.masked_nl[0].long().tolist() for v in views] == [[0, 1, 0, 0], [1, 1, 0, 1]]
    assert float(estimator.combine([LP, LP], views).sum()) == pytest.approx(want, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "options", "levels"),
    [
        ("mc", {"samples": 1}, 0),
        ("mc", {"samples": 3}, 0),
        *(("strat_mc", {"samples": n}, 0) for n in (1, 2, 3, 4, 7)),
        ("elbo", {"masks": "exact"}, 0),
        *(("complementary", {"pairs": n}, 1) for n in (1, 2, 3)),
    ],
)
@pytest.mark.parametrize("length", [1, 2, 5])
def test_monte_carlo_is_unbiased_over_all_its_draws(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], levels: int, length: int
) -> None:
    rows = every_draw(monkeypatch, length, length + levels)
    mean = float(estimate(make(name, options), rows).sum(dim=1).mean())
    assert mean == pytest.approx(exact.elbo(context_scorer, length), abs=1e-12)


@pytest.mark.parametrize(
    "options", [{"t_min": 0.0}, {"t_min": 0.0, "antithetic": True}, {"t_min": 0.0, "level": "block"}]
)
def test_bernoulli_masks_are_unbiased(options: dict[str, Any]) -> None:
    rows = full_rows(40_000, 5)
    rows.block_nl = (torch.arange(5) // 3).expand(40_000, 5).clone()
    # With a t per block, a block-attention model sees earlier blocks unmasked: blocks are scored by themselves.
    estimator = make("elbo", options)
    views = estimator.views(rows)
    want, logps = exact.elbo(context_scorer, 5), [context_scorer(v.masked_nl) for v in views]
    if "level" in options:
        parts = [context_scorer(views[0].masked_nl[:, :3]), context_scorer(views[0].masked_nl[:, 3:])]
        want, logps = exact.elbo(context_scorer, 3) + exact.elbo(context_scorer, 2), [torch.cat(parts, dim=1)]
    total_n = estimator.combine(logps, views).sum(dim=1)
    assert abs(float(total_n.mean()) - want) < 4 * float(total_n.std()) / 200
    assert float(total_n.std()) / 200 < 0.02 * abs(want)


def test_each_block_draws_its_own_noise_level() -> None:
    rows = full_rows(3000, 8)
    rows.block_nl = (torch.arange(8) // 4).expand(3000, 8).clone()
    for masks in ("bernoulli", "exact"):
        (view,) = make("elbo", {"level": "block", "masks": masks}).views(rows)
        first, second = view.masked_nl[:, :4].double().mean(dim=1), view.masked_nl[:, 4:].double().mean(dim=1)
        assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.06
        (view,) = make("elbo", {"masks": masks}).views(rows)
        first, second = view.masked_nl[:, :4].double().mean(dim=1), view.masked_nl[:, 4:].double().mean(dim=1)
        assert float(torch.corrcoef(torch.stack([first, second]))[0, 1]) > 0.3


def test_exact_masks_of_blocks_leave_no_block_without_one() -> None:
    rows = ragged()
    (view,) = make("elbo", {"level": "block", "masks": "exact"}).views(rows)
    for row in range(5):
        for block in range(3):
            inside = rows.region_nl[row] & (rows.block_nl[row] == block)
            size, hidden = int(inside.sum()), int((view.scored_nl[row] & inside).sum())
            assert (size > 0) == (hidden > 0)
            assert torch.allclose(
                view.weight_nl[row, inside & view.scored_nl[row]], torch.tensor(1.0 * size).double() / max(1, hidden)
            )


@pytest.mark.parametrize("rule", ["gauss-1", "gauss-2", "gauss-3", "gauss-4", "gauss-5", "simpson", "midpoint-3"])
@pytest.mark.parametrize("length", [1, 3, 6])
def test_a_scorer_that_ignores_the_mask(monkeypatch: pytest.MonkeyPatch, rule: str, length: int) -> None:
    """Expectation of a time's term: k/(L t) of the sum with 1/t, the sum itself with L/k, for every rule."""
    lp = context_scorer(torch.zeros(1, length, dtype=torch.bool))
    rows = every_draw(monkeypatch, length, 1)
    for weighting in ("1/t", "L/k"):
        estimator = make("sdmc", {"rule": rule, "weighting": weighting})
        views = estimator.views(rows)
        terms = [float(estimator.combine([lp], [v]).sum(dim=1).mean() / lp.sum()) for v in views]
        for term, time, weight in zip(terms, estimator.times, estimator.weights):  # type: ignore[attr-defined]
            count, clamped = masked_counts(time, torch.tensor([length]))
            published = weighting == "1/t" and not bool(clamped)
            assert term == pytest.approx(weight * (int(count) / (length * time) if published else 1), abs=1e-12)
        if weighting == "L/k":
            assert sum(terms) == pytest.approx(1, abs=1e-12)


def test_the_expectation_of_sdmc_is_its_rule_over_the_exact_node_values(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = every_draw(monkeypatch, 5, 1)
    values = exact.node_values(context_scorer, 5)
    for draws_ in (1, 2):
        estimator = make("sdmc", {"rule": "gauss-3", "draws": draws_, "weighting": "L/k"})
        counts = [int(masked_counts(t, torch.tensor([5]))[0]) for t in estimator.times]  # type: ignore[attr-defined]
        weights = estimator.weights  # type: ignore[attr-defined]
        want = sum(w * 5 / k * float(values[k - 1]) for w, k in zip(weights, counts))
        assert float(estimate(estimator, rows).sum(dim=1).mean()) == pytest.approx(want, abs=1e-12)


def test_short_completions_are_not_dropped_by_the_floor() -> None:
    """Released code: floor(0.113 L) = 0 below 9 tokens, and the time counts nothing."""
    for length in range(1, 9):
        counts = [int(v.scored_nl.sum()) for v in make("sdmc").views(full_rows(1, length))]
        assert counts[0] == 1 and all(1 <= c <= length for c in counts)
    one = make("sdmc").views(full_rows(1, 1))
    assert sum(float(v.weight_nl.sum()) for v in one) == pytest.approx(1)  # not 1/t for its only token


def test_counts_are_of_the_row_and_floors_do_not_slip() -> None:
    count, clamped = masked_counts(0.29, torch.tensor([100, 3, 1, 0]))
    assert count.tolist() == [29, 1, 1, 0] and clamped.tolist() == [False, True, True, True]
    for view, want in zip(make("sdmc", {"weighting": "L/k"}).views(ragged()), ([1, 1, 0, 1, 1], [4, 1, 0, 1, 1])):
        assert view.scored_nl.sum(dim=1).tolist() == want
        shares = view.weight_nl.sum(dim=1) / torch.tensor(
            [8, 1, 1, 3, 3]
        )  # L/k * k: the region's length, not the canvas
        assert torch.allclose(shares[[0, 1, 3, 4]], shares[0])


def test_counts_rounded_up_leave_the_error_of_the_rule_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A midpoint time in each of the L bins is the discrete ELBO itself; rounded down the counts miss all of them."""
    rows = every_draw(monkeypatch, 5, 1)
    want = exact.elbo(context_scorer, 5)
    found = {
        count: float(
            estimate(make("sdmc", {"rule": "midpoint-5", "weighting": "L/k", "count": count}), rows).sum(dim=1).mean()
        )
        for count in ("floor", "ceil")
    }
    assert found["ceil"] == pytest.approx(want, abs=1e-12) and found["floor"] > want + 0.5
    count, clamped = masked_counts(0.1, torch.tensor([10, 11, 1, 0]), "ceil")
    assert count.tolist() == [1, 2, 1, 0] and clamped.tolist() == [False, False, False, True]


def test_a_longer_draw_averages_masks() -> None:
    rows = full_rows(400, 8)
    spread = [float(estimate(make("sdmc", {"draws": k}), rows).sum(dim=1).std()) for k in (1, 4)]
    assert spread[1] == pytest.approx(spread[0] / 2, rel=0.2)


def test_stratified_counts_are_spread_over_the_lengths() -> None:
    counts = torch.stack([v.scored_nl.sum(dim=1) for v in make("strat_mc", {"samples": 4}).views(full_rows(50, 8))])
    for row in counts.T.tolist():
        assert len(set(row)) == 4 and {(a - b) % 8 for a, b in zip(row, row[1:])} == {6}


def test_stratified_counts_are_uniform_where_halves_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """L = 6 in 4 views: steps of 1.5. Rounded to even, as released, the second view never masks an odd number."""
    rows = every_draw(monkeypatch, 6, 6)
    for view in make("strat_mc", {"samples": 4}).views(rows):
        assert view.scored_nl.sum(dim=1).bincount(minlength=7).tolist() == [0, *([720] * 6)]


def test_gauss_at_time_one_is_the_one_step_sum() -> None:
    sdmc = make("sdmc", {"rule": "gauss-1"})
    sdmc.times = (1.0,)  # type: ignore[attr-defined]
    rows = full_rows(3, 5)
    torch.testing.assert_close(estimate(sdmc, rows), estimate(make("one_step", {"p_mask_prompt": 0.0}), rows))


def test_one_step_hides_all_of_the_completion_and_a_share_of_the_prompt() -> None:
    rows = ragged()
    (view,) = make("one_step", {"p_mask_prompt": 0.0}).views(rows)
    assert view.prompt_masked_np is None
    assert torch.equal(view.masked_nl, rows.region_nl | (rows.steps_nl >= 0))
    wide = full_rows(500, 4)
    wide.prompt_np = torch.ones(500, 40, dtype=torch.bool)
    (view,) = make("one_step").views(wide)
    assert view.prompt_masked_np is not None
    assert float(view.prompt_masked_np.double().mean()) == pytest.approx(0.15, abs=0.01)
    (view,) = make("one_step", {"p_mask_prompt": 1}).views(rows)
    assert view.prompt_masked_np is not None and torch.equal(view.prompt_masked_np, rows.prompt_np)


def test_trajectory_rounds_are_the_most_distinct_steps_of_a_block() -> None:
    rows = ragged()
    exact_views = make("trajectory").views(rows)
    assert len(exact_views) == 3  # blocks of row 0 took steps {0, 1, 2} and {3, 4, 5}
    assert [v.masked_nl[0, :8].long().tolist() for v in exact_views] == [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 0, 0, 1, 1],
        [0, 0, 0, 1, 0, 0, 1, 0],
    ]
    assert [v.scored_nl[0, :8].long().tolist() for v in exact_views] == [
        [1, 1, 0, 0, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0, 0, 1, 0],
    ]
    assert len(make("trajectory", {"shrink": 2}).views(rows)) == 2
    rows.block_nl.zero_()  # full attention: one view a step
    assert len(make("trajectory").views(rows)) == 6


def test_exact_slices_follow_the_step_map_and_one_step_ignores_it() -> None:
    rows = full_rows(1, 6)
    again = full_rows(1, 6)
    again.steps_nl = again.steps_nl.flip(1)
    one, two = (estimate(make("trajectory"), r) for r in (rows, again))
    assert float((one - two).abs().max()) > 0.1
    one_step = make("trajectory", {"slices": "one_step"})
    assert torch.equal(estimate(one_step, rows), estimate(one_step, again))
    assert float((one - estimate(one_step, rows)).abs().max()) > 0.1


def test_a_decoding_in_one_step_is_its_one_step_slice() -> None:
    rows = full_rows(2, 6)
    rows.steps_nl.zero_()
    torch.testing.assert_close(
        estimate(make("trajectory"), rows), estimate(make("trajectory", {"slices": "one_step"}), rows)
    )
    many = full_rows(2, 6)
    torch.testing.assert_close(estimate(make("trajectory", {"shrink": 6}), many), estimate(make("trajectory"), rows))


def test_one_token_a_step_in_order_is_the_chain_rule() -> None:
    views = make("trajectory").views(full_rows(1, 4))
    assert [v.masked_nl[0].long().tolist() for v in views] == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]


def test_rows_without_a_step_map_are_refused() -> None:
    rows = pick(ragged(), [0])
    rows.steps_nl[0, 4] = -1
    with pytest.raises(UserError, match="position 4 of row 0 has no decoding step"):
        make("trajectory").views(rows)


def test_coupled_views_read_each_token_twice_in_complements() -> None:
    rows = full_rows(4000, 5)
    full, mask, other = make("coupled").views(rows)
    assert full.scored_nl.all() and torch.equal(mask.scored_nl, ~other.scored_nl)
    assert torch.all(full.weight_nl == 0.5)
    mean = torch.stack([mask.weight_nl + other.weight_nl]).sum(dim=0).mean()
    assert float(mean) == pytest.approx(1.0, abs=0.03)  # E[m/r + (1-m)/(1-r)] / 2
    low, high = mask.weight_nl[mask.scored_nl].min(), mask.weight_nl[mask.scored_nl].max()
    assert 0.5 / 0.8 <= float(low) < 0.66 and 2.3 < float(high) <= 0.5 / 0.2


def test_random_masks_average_over_the_views_that_hid_a_token() -> None:
    rows = full_rows(200, 10)
    estimator = make("random_masking", {"views": 4})
    views = estimator.views(rows)
    total = torch.stack([v.weight_nl for v in views]).sum(dim=0)
    hidden = torch.stack([v.scored_nl for v in views]).any(dim=0)
    torch.testing.assert_close(total, hidden.double())
    shares = torch.stack([v.scored_nl.double().mean(dim=1) for v in views])
    assert float(shares.min()) >= 0.1 and float(shares.max()) <= 0.9
    assert float((shares.max(dim=0).values - shares.min(dim=0).values).min()) > 0.5  # evenly spread over 0.1 .. 0.9
