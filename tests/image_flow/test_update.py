"""The recipes in the one streaming update: pieces of single steps equal the graph of whole trajectories."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_policy import RECORDS
from toy_model import ToyModel

from image_gen.flow import stages  # noqa: F401  (registers the native stages)
from image_gen.flow.config import Inputs, Model, Sampling
from image_gen.flow.policy import FlowPolicy
from mmrl import recipes
from mmrl.core.channels import split_pass
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.registry import stages as registered
from mmrl.core.streams import Streams
from mmrl.core.table import Table
from mmrl.training.batch import Scored, table_of
from mmrl.training.rollouts import Request, Rollouts
from mmrl.training.update import evaluate, needs_of, streaming_update

SLUGS = ("flow-grpo", "flow-grpo-fast", "mix-grpo", "dance-grpo", "grpo-guard", "vgpo")


def policy_of(sampling: dict[str, Any], *, rows: int) -> FlowPolicy:
    """float64: both halves of the guidance, the reference and the likelihood too."""
    return FlowPolicy(
        ToyModel(dtype=torch.float64),
        options=Model.model_validate({"path": "toy", "piece_rows": rows, "adapter": {"kind": "none"}}),
        sampling=Sampling.model_validate(sampling),
        inputs=Inputs(height=4, width=4),
    )


def objective_of(slug: str, options: dict[str, Any] | None = None) -> tuple[Objective, dict[str, Any]]:
    recipe = parse(slug, recipes.read(slug), unit="element-mean", options=options)
    kind = FlowPolicy
    return Objective(
        recipe, channel="steps", unit=kind.unit, provides=kind.provides, keys=kind.keys, dense=kind.dense
    ), dict(recipe.sampling)


def prepared(policy: FlowPolicy, objective: Objective, *, moved: float = 0.02) -> tuple[Rollouts, Table]:
    """Rollouts of 2 prompts x 3 with made rewards, after which the weights have moved a little."""
    needed = {name for names in objective.needs().values() for name in names}
    policy.expect(frozenset(needed | ({"reward_ntk"} if objective.needs_dense else set())))
    policy.keep_reference("steps")
    rollouts = policy.rollout([Request(r, 3) for r in RECORDS], Streams(0, 0))
    steps = rollouts.tables["steps"]["mask_nt"].shape[1]
    torch.manual_seed(1)
    dense = torch.rand(6, steps, 1, dtype=torch.float64) if objective.needs_dense else None
    scored = Scored(rollouts, torch.rand(6, 1, dtype=torch.float64), torch.ones(1).double(), ["made"], dense)
    table = table_of(scored, "steps").updated({"prompt_mean_n": torch.zeros(6), "prompt_std_n": torch.ones(6)})
    old = evaluate(policy, rollouts, {"logp_nt"}, channel="steps")["logp_nt"]
    table = table.updated({"old_logp_nt": old})
    if "logp_nt" in objective.needs()["ref"]:
        table = table.updated({"ref_logp_nt": old})
    torch.manual_seed(2)
    with torch.no_grad():
        for p in policy.parameters_of("steps"):
            p += moved * torch.randn_like(p)
    return rollouts, objective.prepare(table)


def gradient(policy: FlowPolicy, objective: Objective, rollouts: Rollouts, table: Table, **how: Any) -> Any:
    for p in policy.parameters_of("steps"):
        p.grad = None
    update = streaming_update(policy, objective, rollouts, table, channel="steps", **how)
    slopes = [p.grad.clone() for p in policy.parameters_of("steps") if p.grad is not None]
    assert len(slopes) == len(policy.parameters_of("steps"))
    return update, torch.cat([s.flatten() for s in slopes])


def whole(policy: FlowPolicy, objective: Objective, rollouts: Rollouts, table: Table) -> tuple[float, torch.Tensor]:
    """One graph over all steps of all trajectories, written plainly."""
    for p in policy.parameters_of("steps"):
        p.grad = None
    needs = needs_of(policy, "steps", objective.needs()[""])
    bundles = policy.bundles(rollouts, channel="steps", update=0, scope="batch")
    raws: dict[str, torch.Tensor] = {}
    for piece in (p for b in bundles for p in b.pieces):
        for name, value in policy.evaluate(piece, None, needs).items():
            full = raws.get(name, torch.zeros(table["mask_nt"].shape, dtype=torch.float64))
            assert piece.columns is not None
            raws[name] = full.index_put((piece.rows[:, None], piece.columns[None]), value)
    table = objective.widths_and_weights(table.updated({"part_n": torch.zeros(6, dtype=torch.long)}))
    coef, counts = objective.coefficients(table)
    loss = objective.terms(table.updated(raws), coef, counts).loss()
    loss.backward()
    return float(loss.detach()), torch.cat(
        [p.grad.flatten() for p in policy.parameters_of("steps") if p.grad is not None]
    )


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("rows", [1, 2, 6])
def test_pieces_equal_the_whole_graph(slug: str, rows: int) -> None:
    wide = {} if slug == "grpo-guard" else {"bounds.low": 0.01, "bounds.high": 0.01}  # some decisions on either side
    objective, sampling = objective_of(slug, wide)
    policy = policy_of(sampling, rows=rows)
    rollouts, table = prepared(policy, objective)
    loss, expected = whole(policy, objective, rollouts, table)
    assert float(expected.norm()) > 1e-6
    for two_pass in (False, True):
        update, found = gradient(policy, objective, rollouts, table, two_pass=two_pass)
        assert update.loss == pytest.approx(loss, rel=1e-10, abs=1e-12)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("level", ["row", "row-sum"])
def test_a_ratio_per_row_takes_two_passes_of_single_steps(level: str) -> None:
    objective, sampling = objective_of("flow-grpo", {"gate.level": level})
    policy = policy_of(sampling, rows=2)
    rollouts, table = prepared(policy, objective)
    loss, expected = whole(policy, objective, rollouts, table)
    update, found = gradient(policy, objective, rollouts, table)
    assert update.passes == 2 and update.loss == pytest.approx(loss, rel=1e-10)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def fits(stage: Any) -> bool:
    """The unit fits, and every channel it needs exists here."""
    own = {"mask_nt", "length_n", "finished_n", "limit_n", "part_n", "reward_n", "reward_nk", "reward_ntk", "weight_k"}
    own |= {"adv_nt", "keep_n", "prompt_mean_n", "prompt_std_n", "eps_low_nt", "eps_high_nt", "keys", "segments"}
    return "element-mean" in stage.units and all(
        name in own or split_pass(name)[1] in FlowPolicy.provides for name in stage.required
    )


ADVANTAGES = [n for n, s in registered("advantage").items() if fits(s) and n != "constant"]
GATES = [n for n, s in registered("gate").items() if fits(s) and n != "supervised"]


@pytest.mark.parametrize("name", ADVANTAGES)
def test_every_advantage_of_the_core_runs_here(name: str) -> None:
    objective, sampling = objective_of("flow-grpo", {"advantage": {"name": name}})
    policy = policy_of(sampling, rows=6)
    rollouts, table = prepared(policy, objective)
    update, found = gradient(policy, objective, rollouts, table)
    assert bool(table["adv_nt"].isfinite().all()) and bool((table["adv_nt"][~table["mask_nt"]] == 0).all())
    assert bool(found.isfinite().all()) and float(found.norm()) > 0


@pytest.mark.parametrize("name", GATES)
def test_every_gate_whose_unit_fits_runs_here(name: str) -> None:
    bounds = {} if name in ("ppo-clip", "cispo", "grpo-guard") else {"bounds": None}
    objective, sampling = objective_of("flow-grpo", {"gate": {"name": name}, **bounds})
    policy = policy_of(sampling, rows=6)
    rollouts, table = prepared(policy, objective, moved=1e-4)
    update, found = gradient(policy, objective, rollouts, table)
    assert bool(found.isfinite().all()) and float(found.norm()) > 0


def test_the_walk_is_not_empty() -> None:
    assert {"grpo", "dr-grpo", "batch-std", "rloo", "vgpo", "tracked"} <= set(ADVANTAGES)
    assert {"ppo-clip", "cispo", "grpo-guard", "reinforce"} <= set(GATES)


@pytest.mark.parametrize("slug", SLUGS)
def test_the_first_update_sees_ratio_1(slug: str) -> None:
    objective, sampling = objective_of(slug)
    policy = policy_of(sampling, rows=4)
    rollouts, table = prepared(policy, objective, moved=0.0)
    update, _ = gradient(policy, objective, rollouts, table)
    total, count = update.stats["ratio"]
    assert total / count == pytest.approx(1.0, abs=1e-9)
    assert update.logp_nt is not None
    mask = table["mask_nt"]
    gap = (update.logp_nt - table["sampler_logp_nt"])[mask].exp() - 1
    assert float(gap.abs().max()) < 1e-5
