"""The update of a diffusion LM: every way to cut it gives the same numbers, and equal weights a ratio of 1."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_policy import gradient, policy, sampled

from dlm.policy import ElboPolicy, TokenPolicy
from mmrl import recipes
from mmrl.core import recipe as core_recipe
from mmrl.core.objective import Objective
from mmrl.core.table import Table
from mmrl.training.update import evaluate, streaming_update

LIKELIHOODS = {
    "sdmc": (ElboPolicy, {"name": "sdmc", "options": {"rule": "gauss-3"}}),
    "strat_mc": (ElboPolicy, {"name": "strat_mc", "options": {"samples": 3}}),
    "complementary": (ElboPolicy, {"name": "complementary"}),
    "one_step": (TokenPolicy, {"name": "one_step"}),
    "trajectory": (TokenPolicy, {"name": "trajectory", "region": "to_eos"}),
    "slices_of_one_step": (TokenPolicy, {"name": "trajectory", "options": {"slices": "one_step"}}),
}
WHOLE, MIDDLE, SMALL = 100_000, 150, 48  # columns: everything at once, some rows, one row under one view


def objective(one: ElboPolicy) -> Objective:
    slug = "gspo" if one.unit == "row" else "dapo"
    parsed = core_recipe.parse(slug, recipes.read(slug), options={"bounds.low": 0.2, "bounds.high": 0.2})
    return Objective(parsed, channel="tokens", unit=one.unit, provides=one.provides)


def updated(one: ElboPolicy, *, twice: bool = False) -> tuple[float, torch.Tensor, torch.Tensor | None, int]:
    rollouts = sampled(one)
    goal = objective(one)
    rows = len(rollouts)
    adv = torch.linspace(-1, 1, rows, dtype=torch.float64)[:, None]
    mask = rollouts.tables["tokens"]["mask_nt"]
    old = evaluate(one, rollouts, {"logp_nt"}, channel="tokens", update=1)["logp_nt"]
    old = old + 0.05 * torch.sin(torch.arange(old.numel(), dtype=torch.float64)).reshape(old.shape)
    table = Table(
        {
            "mask_nt": mask,
            "adv_nt": adv.expand(mask.shape).contiguous(),
            "old_logp_nt": old,
            "keep_n": adv[:, 0] == adv[:, 0],
        },
        rollouts.keys,
    )
    one.model.zero_grad()
    done = streaming_update(one, goal, rollouts, table, channel="tokens", update=1, two_pass=twice)
    return done.loss, gradient(one), done.logp_nt, done.pieces


@pytest.mark.parametrize("model", ["llada", "sdar", "dream"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_pieces_of_any_size_give_one_gradient(folders: dict[str, Path], model: str, name: str) -> None:
    kind, likelihood = LIKELIHOODS[name]
    results = [
        updated(policy(folders[model], kind, budget=budget, likelihood=likelihood, packing=packing), twice=twice)
        for budget, packing, twice in ((WHOLE, False, False), (SMALL, False, False), (MIDDLE, True, True))
    ]
    whole = results[0]
    assert results[1][3] > whole[3]
    assert float(whole[1].norm()) > 1e-6
    for loss, grad, logp, _ in results[1:]:
        assert loss == pytest.approx(whole[0], abs=1e-10)
        assert torch.allclose(grad, whole[1], atol=1e-10, rtol=1e-8)
        assert logp is not None and torch.allclose(logp, whole[2], atol=1e-10)


@pytest.mark.parametrize("model", ["llada", "sdar", "dream"])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_equal_weights_and_stored_masks_give_a_log_ratio_of_zero(
    folders: dict[str, Path], model: str, name: str
) -> None:
    kind, likelihood = LIKELIHOODS[name]
    big = policy(folders[model], kind, budget=WHOLE, likelihood=likelihood)
    small = policy(folders[model], kind, budget=SMALL, likelihood=likelihood)
    rollouts = sampled(big)
    first, second = (
        evaluate(one, rollouts, {"logp_nt"}, channel="tokens", update=2)["logp_nt"] for one in (big, small)
    )
    assert torch.allclose(first, second, atol=1e-11)
    assert float(first.abs().max()) > 0.1
    other = evaluate(big, rollouts, {"logp_nt"}, channel="tokens", update=3)["logp_nt"]
    assert torch.equal(first, other) == (not big.noise_per_update)  # an update has masks of its own


@pytest.mark.parametrize("model", ["llada", "sdar", "dream"])
@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7}, {"top_p": 0.8, "temperature": 1.3}, {"guidance": 0.5}])
@pytest.mark.parametrize("rule", ["steps", "threshold"])
def test_the_exact_slices_are_the_samplers_own_log_probabilities(
    folders: dict[str, Path], model: str, changes: dict[str, float], rule: str
) -> None:
    one = policy(folders[model], rule=rule, threshold=0.02, **changes)
    rollouts = sampled(one)
    table = rollouts.tables["tokens"]
    logp = evaluate(one, rollouts, {"logp_nt"}, channel="tokens")["logp_nt"]
    assert int(table["mask_nt"].sum()) > 20
    assert torch.allclose(logp[table["mask_nt"]], table["sampler_logp_nt"][table["mask_nt"]].double(), atol=1e-8)


def test_the_released_one_step_estimate_is_not_the_samplers(folders: dict[str, Path]) -> None:
    """A policy that ignored the step map would pass for the real one only at one token per row."""
    one = policy(folders["sdar"], likelihood={"name": "trajectory", "options": {"slices": "one_step"}})
    exact = policy(folders["sdar"])
    rollouts = sampled(exact)
    first, second = (evaluate(p, rollouts, {"logp_nt"}, channel="tokens")["logp_nt"] for p in (one, exact))
    assert float((first - second).abs().max()) > 0.01


def test_sdmc_is_the_formula_over_plain_forwards(folders: dict[str, Path]) -> None:
    """sum over nodes of w_n / t_n times the masked log-probabilities, from whole logits of one row at a time."""
    from dlm.pieces import completions

    one = policy(folders["llada"], ElboPolicy, likelihood={"name": "sdmc", "options": {"rule": "gauss-2"}})
    rollouts = sampled(one)
    found = evaluate(one, rollouts, {"logp_nt"}, channel="tokens", update=4)["logp_nt"]
    for i, row in enumerate(rollouts.rows):
        seen = completions([row], [torch.ones(len(row), dtype=torch.bool)], block=4, grid=False, update=4)
        total = torch.zeros((), dtype=torch.float64)
        for view in one.estimator.views(seen):
            noisy = torch.where(view.masked_nl[0], one.traits.mask_id, row.ids)
            ids = torch.cat([row.prompt, noisy])[None]
            hidden = one.model.hidden(ids, positions_nl=torch.arange(ids.shape[1])[None], attend_nqk=None)
            logp = torch.log_softmax(one.model.head(hidden)[0, len(row.prompt) :], -1)
            own = logp.gather(1, row.ids[:, None])[:, 0]
            total = total + (own * view.weight_nl[0])[view.scored_nl[0]].sum()
        assert float(found[i].sum()) == pytest.approx(float(total), abs=1e-9)
