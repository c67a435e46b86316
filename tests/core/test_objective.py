"""The objective: needs, scope, refusals, terms with counts of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_objective_checks import FLOW, PROVIDES, run
from core_world import N, T, drop, world

from mmrl import recipes
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.errors import UserError

PLAIN: dict[str, Any] = {"advantage": "grpo", "gate": "ppo-clip", "reduce": "token-mean"}
EVERY = [torch.arange(N)]


def build(unit: str = "decision", provides: frozenset[str] = PROVIDES, **changes: Any) -> Objective:
    return Objective(parse("mine", {**PLAIN, **changes}), channel="tokens", unit=unit, provides=provides)


def shipped(name: str, **options: Any) -> Objective:
    recipe = parse(name, recipes.read(name), options={k.replace("__", "."): v for k, v in options.items()})
    return Objective(recipe, channel="tokens", unit="decision", provides=PROVIDES)


# ---- needs


def test_a_penalty_with_coefficient_zero_vanishes() -> None:
    assert shipped("grpo").needs()["ref"] == {"logp_nt"}
    free = shipped("grpo", penalties__kl__coef=0.0)
    assert free.needs()["ref"] == set() and len(free.terms_) == 1
    assert shipped("grpo").has_absolute_terms and not free.has_absolute_terms


@pytest.mark.parametrize(
    ("name", "now", "old", "ref"),
    [
        ("rloo", {"logp_nt"}, set(), set()),
        ("dr-grpo", {"logp_nt"}, {"logp_nt"}, set()),
        ("reinforce-pp", {"logp_nt"}, {"logp_nt"}, set()),
        ("gspo", {"logp_nt"}, {"logp_nt"}, set()),
        ("cispo", {"logp_nt"}, {"logp_nt"}, set()),
        ("visual-rft", {"logp_nt"}, {"logp_nt"}, {"logp_nt"}),
        ("sft", {"supervised_nt"}, set(), set()),
    ],
)
def test_passes_of_the_shipped_recipes(name: str, now: set[str], old: set[str], ref: set[str]) -> None:
    assert shipped(name).needs() == {"": now, "old": old, "ref": ref, "sampler": set()}


def test_what_runs_before_the_update_is_known() -> None:
    paid = shipped("reinforce-pp", advantage__beta_kl=0.1)
    assert paid.needs_before_update() == {"": set(), "old": {"logp_nt"}, "ref": {"logp_nt"}, "sampler": set()}
    assert shipped("reinforce-pp").needs_before_update()["ref"] == set()
    assert build(weight=["tis"]).needs()["sampler"] == {"logp_nt"}
    assert build(penalties=[{"name": "entropy", "coef": 0.01}]).needs()[""] == {"logp_nt", "entropy_nt"}


def test_a_closed_form_replaces_the_reference_pass() -> None:
    with_form = build(penalties=["kl"], provides=PROVIDES | {"kl_nt"})
    assert with_form.needs()["ref"] == set() and "kl_nt" in with_form.needs()[""]


def test_a_channel_that_the_policy_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="recipe mine: needs entropy_nt, which this policy does not provide"):
        build(penalties=["entropy"], provides=frozenset({"logp_nt"}))


# ---- units


@pytest.mark.parametrize(
    ("unit", "changes", "message"),
    [
        ("row", {}, "gate 'ppo-clip' does not fit log-probabilities per row: single decisions of an ELBO"),
        ("row", {"gate": "cispo"}, "gate 'cispo' does not fit log-probabilities per row"),
        ("row", {"gate": "gspo"}, "reduce 'token-mean' does not fit log-probabilities per row"),
        ("element-mean", {"gate": "gspo"}, "gate 'gspo' does not fit log-probabilities per element-mean"),
        ("element-mean", {"bounds": {"name": "constant", "low": 0.2, "high": 0.2}}, "a clip of 0.2 never acts"),
        ("element-mean", {"bounds": {"name": "constant", "low": 1e-4, "high": 1}}, "a clip of 1 never acts"),
        ("element-mean", {}, "a clip of 0.2 never acts"),
        ("element-mean", {"gate": "cispo"}, "a clip of 0.28 never acts"),
        ("element-mean", {"advantage": "reinforce-pp", "gate": "reinforce"}, "advantage 'reinforce-pp' does not fit"),
    ],
)
def test_units_that_do_not_fit_are_refused(unit: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(unit=unit, **changes)
    assert message in str(caught.value)


def test_units_that_fit() -> None:
    build(unit="row", gate="gspo", reduce="seq-mean-token-mean")
    build(unit="element-mean", bounds={"name": "constant", "low": 1e-4, "high": 1e-4})
    build(unit="element-mean", gate="reinforce")


# ---- what would be ignored


def test_a_penalty_may_stand_once() -> None:
    with pytest.raises(UserError, match="penalty 'kl' is there twice"):
        build(penalties=[{"name": "kl", "coef": 0.1}, {"name": "kl", "estimator": "k2", "coef": 0.1}])


@pytest.mark.parametrize(("gate", "low"), [("ppo-clip", None), ("gspo", None)])
def test_a_bound_that_a_gate_always_has_cannot_be_removed(gate: str, low: float | None) -> None:
    with pytest.raises(UserError, match="always has this bound"):
        build(gate=gate, reduce="seq-mean-token-mean", bounds={"name": "constant", "low": low, "high": 0.2})
    build(gate="cispo", bounds={"name": "constant", "low": None, "high": 0.2})


def test_a_cap_below_one_is_refused() -> None:
    """`bound: cap` with the widths of `bound: offset` would silently train at 0.28 of the rate."""
    with pytest.raises(UserError, match="largest ratio itself, at least 1; got 0.28"):
        shipped("cispo", gate__bound="cap")
    shipped("cispo", gate__bound="cap", bounds__high=5.0)


def test_a_shape_that_the_advantage_does_not_read_is_refused() -> None:
    with pytest.raises(
        UserError, match="'grpo-per-reward' does not read the reward of the row, so `shape` would be ig"
    ):
        build(advantage="grpo-per-reward", shape=["overlong"])
    build(shape=["overlong"])


# ---- rewards of single decisions


def test_dense_rewards_need_a_policy_that_has_them() -> None:
    flow = {"unit": "element-mean", "bounds": {"name": "constant", "low": 1e-4, "high": 1e-4}, "provides": FLOW}
    with pytest.raises(UserError, match="advantage 'vgpo' needs a reward per decision; rewards are per rollout"):
        build(**flow, advantage="vgpo")
    recipe = parse("mine", {**PLAIN, "advantage": "vgpo", "bounds": flow["bounds"]})
    objective = Objective(recipe, channel="steps", unit="element-mean", provides=FLOW, dense=True)
    assert objective.needs_dense and objective.signal_without_variance and objective.has_absolute_terms
    lacking = FLOW - {"scored_nt"}
    with pytest.raises(UserError, match="needs scored_nt, which this policy does not provide \\(advantage 'vgpo'\\)"):
        Objective(recipe, channel="steps", unit="element-mean", provides=lacking, dense=True)


def test_tables_of_denoising_steps_are_refused_elsewhere() -> None:
    bounds = {"name": "constant", "low": 1e-5, "high": 1e-5}
    with pytest.raises(UserError, match="gate 'grpo-guard' does not fit log-probabilities per decision: it corrects"):
        build(gate="grpo-guard", bounds=bounds)
    with pytest.raises(UserError, match="needs mean_gap_nt, which this policy does not provide"):
        build(unit="element-mean", gate="grpo-guard", bounds=bounds, provides=FLOW - {"mean_gap_nt"})
    guard = build(unit="element-mean", gate="grpo-guard", bounds=bounds, provides=FLOW)
    assert guard.needs() == {"": {"logp_nt", "mean_gap_nt"}, "old": {"logp_nt"}, "ref": set(), "sampler": set()}
    assert guard.scope == "decision"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 2.0}, "gamma must be between 0 and 1"),
        ({"omega_level": "rows"}, "omega_level must be sample or group"),
        ({"omega_clip": 5.0}, "omega_clip must be two rising numbers"),
        ({"omega_clip": [5.0, 0.2]}, "omega_clip must be two rising numbers"),
        ({"form": "both"}, "form must be outer or inner"),
        ({"skip_first": -1}, "skip_first must be a whole number of at least 0"),
        ({"reward_shift": "min"}, "advantage 'vgpo' refuses"),
    ],
)
def test_wrong_options_of_vgpo(options: dict[str, Any], message: str) -> None:
    recipe = parse("mine", {**PLAIN, "gate": "reinforce", "advantage": {"name": "vgpo", **options}})
    with pytest.raises(UserError) as caught:
        Objective(recipe, channel="steps", unit="element-mean", provides=FLOW, dense=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_skipped_steps_are_compared_with_the_sampler_later() -> None:
    """How many steps there are is known with the rollouts: a large skip_first passes, then is one clear line."""
    recipe = parse("mine", {**PLAIN, "gate": "reinforce", "advantage": {"name": "vgpo", "skip_first": T}})
    objective = Objective(recipe, channel="steps", unit="element-mean", provides=FLOW, dense=True)
    with pytest.raises(UserError, match="advantage vgpo: skip_first 6 leaves none of the 6 sampling steps"):
        objective.prepare(world())
    recipe = parse("mine", {**PLAIN, "gate": "reinforce", "advantage": "vgpo"})
    objective = Objective(recipe, channel="steps", unit="element-mean", provides=FLOW, dense=True)
    with pytest.raises(UserError, match="no step was scored"):
        objective.prepare(world().updated({"scored_nt": torch.zeros(N, T, dtype=torch.bool)}))


# ---- scope


def test_scope_is_the_widest_of_the_update() -> None:
    assert build().scope == "decision"
    assert build(gate={"name": "ppo-clip", "level": "row"}).scope == "row"
    assert shipped("gspo").scope == "row"
    assert build(advantage="batch-std").scope == "decision"  # advantages are over before the update


# ---- terms


def test_terms_have_counts_of_their_own() -> None:
    """A sequence-mean policy term beside a token-mean KL: each with its own count, each alone what it would be."""
    table = drop(world(), "eps_low_nt", "eps_high_nt", "kl_nt")
    both = build(reduce="seq-mean-token-mean", penalties=[{"name": "kl", "coef": 0.04, "reduce": "token-mean"}])
    outcome = run(both, table, EVERY)[0][0]
    policy, kl = outcome.terms
    rows, tokens = int((table["mask_nt"].sum(1) > 0).sum()), int(table["mask_nt"].sum())
    assert (policy.name, policy.coef, float(policy.count)) == ("policy", 1.0, rows)
    assert (kl.name, kl.coef, float(kl.count)) == ("kl", 0.04, tokens)
    alone = run(build(reduce="seq-mean-token-mean"), table, EVERY)[0][0]
    assert torch.equal(policy.value(), alone.loss())
    assert outcome.loss().item() == pytest.approx((policy.sum / rows + 0.04 * kl.sum / tokens).item(), abs=1e-12)


def test_entropy_bonus_lowers_the_loss_of_uncertain_policies() -> None:
    table = drop(world(), "eps_low_nt", "eps_high_nt")
    plain = run(build(), table, EVERY)[0][0].loss()
    bonus = run(build(penalties=[{"name": "entropy", "coef": 0.1}]), table, EVERY)[0][0].loss()
    mask = table["mask_nt"]
    assert bonus.item() == pytest.approx((plain - 0.1 * table["entropy_nt"][mask].mean()).item(), abs=1e-12)


def test_diagnostics_are_means_over_valid_decisions() -> None:
    table = drop(world(), "eps_low_nt", "eps_high_nt")
    stats = run(build(), table, EVERY)[0][0].stats
    mask = table["mask_nt"]
    ratio = (table["logp_nt"] - table["old_logp_nt"]).exp()
    total, count = stats["ratio"]
    assert (total / count).item() == pytest.approx(ratio[mask].mean().item(), abs=1e-12)
    assert set(stats) >= {"ratio", "clip_low", "clip_high", "entropy"}
    assert 0 < stats["clip_high"][0] < count


def test_select_marks_rows() -> None:
    prepared = build(select=["zero-variance"]).prepare(world())
    assert prepared["keep_n"].dtype == torch.bool
    assert (~prepared["keep_n"]).nonzero()[:, 0].tolist() == [4, 13, 14]
    assert build().prepare(world())["keep_n"].all()


def test_nothing_valid_gives_zero_loss_with_a_graph() -> None:
    table = drop(world(), "eps_low_nt", "eps_high_nt")
    table = table.updated({"mask_nt": torch.zeros_like(table["mask_nt"])})
    for reduction in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum"):
        outcomes, grad = run(build(reduce=reduction, penalties=["kl"]), table, EVERY)
        assert outcomes[0].loss() == 0 and outcomes[0].loss().requires_grad
        assert (grad == 0).all()
