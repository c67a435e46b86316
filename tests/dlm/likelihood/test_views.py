"""What every estimator keeps: masks shared by seed, rows independent of their batch, only hidden tokens read."""

from __future__ import annotations

from typing import Any

import torch
from likelihood_toys import CASES, EVERY, estimate, full_rows, pick, ragged, same

from dlm.likelihood.registry import make

Options = dict[str, Any]


@EVERY
def test_equal_seeds_give_equal_masks_so_that_old_and_new_share_them(name: str, options: Options) -> None:
    old, new = make(name, options).views(ragged()), make(name, options).views(ragged())
    assert len(old) == len(new)
    for a, b in zip(old, new):
        assert all(same(a, b, row, row, 10) for row in range(5))
    rows = full_rows(6, 8)
    assert torch.equal(estimate(make(name, options), rows), estimate(make(name, options), rows))  # log-ratio 0


def test_masks_of_another_seed_would_move_the_ratio() -> None:
    """The released code draws other masks for the old policy: the difference is nats, not rounding."""
    sdmc = make("sdmc")
    old, new = (estimate(sdmc, full_rows(32, 8, seed=s)).sum(dim=1) for s in (0, 1000))
    assert float((old - new).abs().mean()) > 0.3


def test_estimators_that_draw_use_the_seed_and_the_others_do_not() -> None:
    for name, options in CASES:
        a, b = (make(name, options).views(full_rows(8, 6, seed=s)) for s in (0, 100))
        differ = any(not same(x, y, row, row, 6) for x, y in zip(a, b) for row in range(8))
        fixed = name == "trajectory" or options.get("p_mask_prompt") == 0
        assert differ is not fixed, name


@EVERY
def test_a_row_is_the_same_alone_padded_and_in_any_batch(name: str, options: Options) -> None:
    estimator, rows = make(name, options), ragged()
    together = estimator.views(rows)
    for index, width in (([0], 10), ([1], 1), ([3], 5), ([4], 9), ([4, 0], 16), ([2], 3)):
        part = estimator.views(pick(rows, index, width))
        for i, view in enumerate(part):
            for at, row in enumerate(index):
                assert same(view, together[i], at, row, min(width, 10))
        for view in together[len(part) :]:  # rounds that only other rows have
            assert not view.scored_nl[index].any() and not view.masked_nl[index].any()


@EVERY
def test_only_hidden_positions_of_the_region_are_read(name: str, options: Options) -> None:
    rows = ragged()
    fixed_nl = ~rows.region_nl & (rows.steps_nl < 0)
    for view in make(name, options).views(rows):
        assert view.weight_nl.dtype == torch.float64 and view.masked_nl.dtype == torch.bool
        assert not (view.scored_nl & ~view.masked_nl).any()
        assert not (view.scored_nl & ~rows.region_nl).any()
        assert not (view.masked_nl & fixed_nl).any()  # what was given is shown
        assert torch.equal(view.weight_nl > 0, view.scored_nl)
        assert torch.isfinite(view.weight_nl).all()
        if view.prompt_masked_np is not None:
            assert not (view.prompt_masked_np & ~rows.prompt_np).any()


@EVERY
def test_empty_rows_give_zero_and_masked_nans_are_never_touched(name: str, options: Options) -> None:
    estimator, rows = make(name, options), ragged()
    views = estimator.views(rows)
    logps = [torch.where(v.scored_nl, -1.0, torch.nan).requires_grad_() for v in views]
    total_nl = estimator.combine(logps, views)
    assert torch.isfinite(total_nl).all() and not total_nl[2].any()
    total_nl.sum().backward()
    assert all(torch.isfinite(logp.grad).all() for logp in logps if logp.grad is not None)
    alone = pick(rows, [2, 2])
    alone_views = estimator.views(alone)
    assert not estimator.combine([torch.full((2, 10), torch.nan) for _ in alone_views], alone_views).any()


@EVERY
def test_exclusive_estimators_read_each_position_once_with_weight_one(name: str, options: Options) -> None:
    estimator, rows = make(name, options), ragged()
    total_nl = torch.stack([v.weight_nl for v in estimator.views(rows)]).sum(dim=0)
    reads_nl = torch.stack([v.scored_nl for v in estimator.views(rows)]).long().sum(dim=0)
    once = torch.equal(total_nl, rows.region_nl.double()) and torch.equal(reads_nl, rows.region_nl.long())
    assert once or not estimator.exclusive
    if name in ("one_step", "trajectory"):
        assert estimator.exclusive


@EVERY
def test_positions_after_the_end_token_stay_as_the_options_say(name: str, options: Options) -> None:
    """Row 3 ends at position 2; positions 3 and 4 were decoded as well."""
    rest = [v.masked_nl[3, 3:5].tolist() for v in make(name, options).views(ragged())]
    if name in ("sdmc", "mc", "strat_mc", "elbo", "complementary"):
        assert all(r == [options.get("rest") == "masked"] * 2 for r in rest)
    elif name == "trajectory" and options.get("slices") != "one_step":
        assert rest[0] == [True, False]  # position 4 lies in a later block, position 3 was not filled yet
    else:
        assert all(r == [True, True] for r in rest)
