"""The exact ELBO: both forms have the same weights, and the facts that need no enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from likelihood_toys import context_scorer
from torch import Tensor

from dlm.likelihood import exact
from dlm.likelihood.rules import rule


@pytest.mark.parametrize("length", range(1, 9))
def test_the_continuous_and_the_discrete_form_weigh_each_mask_alike(length: int) -> None:
    masks = exact.all_masks(length)
    assert len(masks) == 2**length - 1 == len({tuple(m) for m in masks.tolist()})
    torch.testing.assert_close(exact.continuous_weights(masks), exact.discrete_weights(masks), rtol=1e-12, atol=0)


def test_the_continuous_weights_are_the_integral() -> None:
    masks = exact.all_masks(5)
    times, weights = rule("gauss-5")  # a polynomial of degree 4
    for mask, weight in zip(masks, exact.continuous_weights(masks)):
        k = int(mask.sum())
        integral = sum(w * t ** (k - 1) * (1 - t) ** (5 - k) for t, w in zip(times, weights))
        assert float(weight) == pytest.approx(integral, rel=1e-12)


def test_a_scorer_that_ignores_the_mask_has_its_sum() -> None:
    lp = torch.tensor([-0.5, -1.0, -0.2, -0.3], dtype=torch.float64)
    assert exact.elbo(lambda m: lp.expand(len(m), -1), 4) == pytest.approx(-2.0, abs=1e-12)
    assert exact.elbo(lambda m: lp[:0].expand(len(m), 0), 0) == 0.0


def test_node_values_average_over_the_masks_of_a_size() -> None:
    values = exact.node_values(context_scorer, 6)
    full = context_scorer(torch.ones(1, 6, dtype=torch.bool)).sum()
    assert float(values[-1]) == pytest.approx(float(full), abs=1e-12)
    total = sum(float(v) / (k + 1) for k, v in enumerate(values))
    assert total == pytest.approx(exact.elbo(context_scorer, 6), abs=1e-12)


def test_conditionals_of_one_distribution_have_no_gap() -> None:
    """ELBO = mean over all orders of the chain rule, so it is log p(y) where the conditionals are a distribution's."""
    g = torch.Generator().manual_seed(0)
    table = torch.rand((3,) * 5, generator=g, dtype=torch.float64) ** 3
    table = table / table.sum()
    answer = (2, 0, 1, 1, 2)

    def scorer(masks: Tensor) -> Tensor:
        out = torch.zeros(masks.shape, dtype=torch.float64)
        for row, mask in enumerate(masks.tolist()):
            seen = table[tuple(slice(None) if hidden else answer[i] for i, hidden in enumerate(mask))]
            places = [i for i, hidden in enumerate(mask) if hidden]
            for axis, i in enumerate(places):
                alone = seen.sum(dim=[a for a in range(len(places)) if a != axis]) if len(places) > 1 else seen
                out[row, i] = math.log(float(alone[answer[i]] / alone.sum()))
        return out

    assert exact.elbo(scorer, 5) == pytest.approx(math.log(float(table[answer])), abs=1e-12)


def test_only_what_can_be_enumerated() -> None:
    with pytest.raises(ValueError, match="from 0 to 16"):
        exact.all_masks(17)
