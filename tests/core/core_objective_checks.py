"""Properties of whole objectives, used by the property table and by the mutation test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from core_world import Case, N, T, assert_same, drop, world
from torch import Tensor

from mmrl.core.objective import Objective, Outcome
from mmrl.core.recipe import Recipe, parse
from mmrl.core.registry import Bound, find
from mmrl.core.table import Table

PROVIDES = frozenset({"logp_nt", "entropy_nt", "supervised_nt"})
FLOW = PROVIDES | {"mean_gap_nt", "dt_nt", "sigma_nt", "scored_nt"}
PLURAL = {"penalty": "penalties"}


def recipe_with(case: Case) -> Recipe:
    """A plain recipe with the stage of `case` in its place."""
    data: dict[str, Any] = {
        "advantage": "raw",
        "gate": "ppo-clip",
        "bounds": {"name": "constant", "low": 0.2, "high": 0.3},
        "reduce": "seq-mean-token-mean",
        "penalties": [{"name": "kl", "coef": 0.3, "reduce": "token-mean"}],
    }
    own = {"name": case.name, **case.options}
    if case.kind == "penalty":
        data["penalties"] = [{**own, "coef": 0.3, "reduce": "token-mean"}]
    else:
        data[case.kind] = own
    if unit_of(case) == "element-mean":
        data["bounds"] = {"name": "constant", "low": 0.01, "high": 0.02}
    if "eps_high_nt" in case.given:
        data["bounds"] = {"name": "constant", "low": None, "high": case.given["eps_high_nt"]}
    if case.kind == "gate" and not case.reads("eps_high_nt"):
        del data["bounds"]
    return parse("test", data)


def unit_of(case: Case) -> str:
    units = find(case.kind, case.name).units
    return "decision" if "decision" in units else "element-mean"


def objective_for(case: Case) -> Objective:
    provides = FLOW | {"kl_nt"} if case.reads("kl_nt") else FLOW
    return Objective(recipe_with(case), channel="tokens", unit=unit_of(case), provides=provides, dense=True)


def run(objective: Objective, table: Table, parts: list[Tensor]) -> tuple[list[Outcome], Tensor]:
    """Outcome of each part under the coefficients and counts of the whole table, and the summed gradient in logp."""
    table = objective.widths_and_weights(objective.prepare(table))
    coef, counts = objective.coefficients(table)
    leaves = {k: table[k].clone().requires_grad_() for k in ("logp_nt", "entropy_nt", "supervised_nt", "mean_gap_nt")}
    outcomes = []
    for rows in parts:
        piece = table.updated(leaves).rows(rows)
        outcomes.append(objective.terms(piece, {k: v[rows] for k, v in coef.items()}, counts))
    loss = torch.stack([o.loss() for o in outcomes]).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return outcomes, torch.cat([g.reshape(-1) for g in grads])


def micro_batches_add_up(case: Case, dtype: torch.dtype) -> None:
    objective = objective_for(case)
    table = case.table(dtype)
    whole, whole_grad = run(objective, table, [torch.arange(N)])
    scattered = [torch.arange(N)[i::3] for i in range(3)]
    uneven = [torch.tensor([3]), torch.tensor([9]), torch.tensor([i for i in range(N) if i not in (3, 9)])]
    if objective.scope == "group":  # its pieces hold whole groups: three of two groups, then each alone
        key = table.keys["prompt"]
        alone = [(key == k).nonzero()[:, 0] for k in key.unique()]
        scattered, uneven = [torch.cat(alone[i::3]) for i in range(3)], alone
    for parts in (scattered, uneven):
        outcomes, grad = run(objective, table, parts)
        assert_same(torch.stack([o.loss() for o in outcomes]).sum(), whole[0].loss(), dtype, "loss")
        assert_same(grad, whole_grad, dtype, "gradient")
        for name, (total, count) in whole[0].stats.items():
            assert_same(sum(o.stats[name][0] for o in outcomes), total, dtype, f"sum of {name}")
            assert_same(sum(o.stats[name][1] for o in outcomes), count, dtype, f"count of {name}")
    assert whole_grad.abs().max() > 0


# ---- properties of the objective itself: name -> callable


def lost_behaviour_leaves_the_count() -> None:
    """A decision whose old log-prob is not finite is as if masked: in the loss, the counts and the diagnostics."""
    objective = objective_for(Case("gate", "ppo-clip"))
    table = world()
    table = Table({k: v for k, v in table.channels.items() if not k.startswith("eps")}, table.keys, table.segments)
    mask = table["mask_nt"].clone()
    mask[3, 1] = mask[7, 0] = False
    gone = torch.where(mask | ~table["mask_nt"], table["old_logp_nt"], torch.tensor(-torch.inf, dtype=torch.float64))
    every = [torch.arange(N)]
    lost, grad = run(objective, table.updated({"old_logp_nt": gone}), every)
    masked, expected = run(objective, table.updated({"mask_nt": mask}), every)
    assert_same(grad, expected)
    assert_same(lost[0].loss(), masked[0].loss())
    assert lost[0].stats["ratio"][1] == mask.sum()


def no_old_pass_means_ratio_one() -> None:
    """Without an old pass the current log-probs stand in, detached: the gradient is that of REINFORCE."""
    table = world()
    rest = {k: v for k, v in table.channels.items() if k not in ("old_logp_nt", "eps_low_nt", "eps_high_nt")}
    every = [torch.arange(N)]
    data = {"advantage": "raw", "reduce": "token-mean"}
    table = Table(rest, table.keys, table.segments)
    grads = []
    for gate in ("ppo-clip", "reinforce"):
        recipe = parse("test", {**data, "gate": gate})
        objective = Objective(recipe, channel="tokens", unit="decision", provides=PROVIDES)
        outcomes, grad = run(objective, table, every)
        grads.append(grad)
        if gate == "ppo-clip":
            total, count = outcomes[0].stats["ratio"]
            assert total == count
    assert_same(grads[0], grads[1])
    assert grads[0].abs().max() > 0


def advantages_are_prepared() -> None:
    """prepare: [N] advantages on every valid decision, 0 where masked, detached; shaping comes before them."""
    table = world()
    data = {"advantage": "dr-grpo", "gate": "reinforce", "reduce": "token-mean"}
    leaf = table["reward_n"].clone().requires_grad_()
    table = table.updated({"reward_n": leaf})
    recipe = parse("test", {**data, "shape": [{"name": "overlong", "weight": 2.0}]})
    shaped = Objective(recipe, channel="tokens", unit="decision", provides=PROVIDES)
    plain = Objective(parse("test", data), channel="tokens", unit="decision", provides=PROVIDES)
    adv = plain.prepare(table)["adv_nt"]
    assert not adv.requires_grad
    assert (adv[~table["mask_nt"]] == 0).all()
    valid = [adv[i][table["mask_nt"][i]] for i in range(N)]
    assert all((v == v[0]).all() for v in valid if len(v))
    assert adv.shape == (N, T) and (adv != 0).any()
    expected = plain.advantage(table.updated({"reward_n": shaped.shape[0](table)}))
    assert_same(shaped.prepare(table)["adv_nt"], torch.where(table["mask_nt"], expected[:, None], torch.zeros(N, T)))
    assert (expected != plain.advantage(table)).any()


def weights_scale_the_policy_term_only() -> None:
    """tis: the policy term is multiplied, the KL term is not; several weights multiply."""
    table = drop(world(), "eps_low_nt", "eps_high_nt", "kl_nt")
    data = {"advantage": "raw", "gate": "ppo-clip", "reduce": "token-mean", "penalties": [{"name": "kl", "coef": 0.5}]}

    def terms(weights: list[Any]) -> list[Tensor]:
        recipe = parse("test", {**data, "weight": weights})
        objective = Objective(recipe, channel="tokens", unit="decision", provides=PROVIDES)
        return [t.value() for t in run(objective, table, [torch.arange(N)])[0][0].terms]

    plain, once, twice = terms([]), terms(["tis"]), terms(["tis", "tis"])
    mask = table["mask_nt"]
    w = (table["old_logp_nt"] - table["sampler_logp_nt"]).exp().clamp(max=2.0)
    recipe = parse("test", data)
    objective = Objective(recipe, channel="tokens", unit="decision", provides=PROVIDES)
    ready = objective.prepare(table)
    loss_nt = objective.terms_[0].stage(ready)["loss_nt"]
    for got, factor in ((plain, torch.ones_like(w)), (once, w), (twice, w * w)):
        assert_same(got[0], (loss_nt * factor)[mask].sum() / mask.sum())
        k3 = (table["ref_logp_nt"] - table["logp_nt"]).exp() - (table["ref_logp_nt"] - table["logp_nt"]) - 1
        assert_same(got[1], 0.5 * k3[mask].sum() / mask.sum())


def old_stand_in_is_detached() -> None:
    """KL with off-policy correction on the one on-policy update: the ratio is 1 in value and in gradient."""
    table = world()
    rest = {k: v for k, v in table.channels.items() if k not in ("old_logp_nt", "eps_low_nt", "eps_high_nt", "kl_nt")}
    mask = table["mask_nt"]
    data = {"advantage": "raw", "gate": "reinforce", "reduce": "token-mean"}
    recipe = parse("test", {**data, "penalties": [{"name": "kl", "off_policy": True, "coef": 1.0}]})
    objective = Objective(recipe, channel="tokens", unit="decision", provides=PROVIDES)
    _, grad = run(objective, Table(rest, table.keys, table.segments), [torch.arange(N)])
    d = table["ref_logp_nt"] - table["logp_nt"]
    adv = table["reward_n"].nan_to_num()[:, None]
    expected = torch.where(mask, (1 - d.exp() + d.exp() - d - 1 - adv) / mask.sum(), torch.zeros(N, T).double())
    assert_same(grad[: N * T].reshape(N, T), expected)

    def spy(*, logp_nt: Tensor, old_logp_nt: Tensor, **_: Any) -> dict[str, Tensor]:
        assert logp_nt.requires_grad and not old_logp_nt.requires_grad
        assert torch.equal(old_logp_nt, logp_nt)
        return {"loss_nt": logp_nt}

    objective = objective_for(Case("gate", "ppo-clip"))
    term = objective.terms_[0]
    objective.terms_[0] = replace(term, stage=Bound(replace(term.stage.stage, fn=spy), {}))
    run(objective, Table(rest, table.keys, table.segments), [torch.arange(N)])


def masked_nan_in_terms() -> None:
    """A policy may leave NaN where nothing was decided: loss, gradient and diagnostics do not see it."""
    objective = objective_for(Case("gate", "ppo-clip"))
    table = Table({k: v for k, v in world().channels.items() if not k.startswith("eps")}, world().keys, {})
    mask = table["mask_nt"]
    passes = ("logp_nt", "old_logp_nt", "ref_logp_nt", "entropy_nt", "adv_nt", "kl_nt", "supervised_nt")
    dirty = {k: torch.where(mask, table[k], torch.full_like(table[k], torch.nan)) for k in passes}
    clean, grad = run(objective, table, [torch.arange(N)])
    noisy, noisy_grad = run(objective, table.updated(dirty), [torch.arange(N)])
    assert_same(noisy[0].loss(), clean[0].loss())
    assert_same(noisy_grad, grad)
    for name, (total, _) in clean[0].stats.items():
        assert_same(noisy[0].stats[name][0], total, what=name)
    supervised = objective_for(Case("gate", "supervised"))
    torn = run(supervised, table.updated({**dirty, "mask_nt": mask}), [torch.arange(N)])[0][0].loss()
    assert torch.isfinite(torn)
    # a stage of a plug-in may return NaN there: the sum must not multiply it
    term = objective.terms_[0]
    coef, counts = objective.coefficients(objective.prepare(table))
    ready = objective.prepare(table)
    broken = Bound(replace(term.stage.stage, fn=lambda **_: {"loss_nt": dirty["logp_nt"]}), {})
    objective.terms_[0] = replace(term, stage=broken)
    assert torch.isfinite(objective.terms(ready, coef, counts).loss())


OBJECTIVE_CHECKS = {
    f.__name__: f
    for f in (
        lost_behaviour_leaves_the_count,
        no_old_pass_means_ratio_one,
        advantages_are_prepared,
        weights_scale_the_policy_term_only,
        old_stand_in_is_detached,
        masked_nan_in_terms,
    )
}
