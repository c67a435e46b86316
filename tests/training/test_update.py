"""The streaming update equals the whole graph, for every recipe and every way of cutting."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mmrl import recipes
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.streams import Streams
from mmrl.selection.request import Request
from mmrl.training.batch import Scored, table_of
from mmrl.training.update import evaluate, streaming_update

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyPolicy, records, zeros

RECIPES = ["grpo", "dr-grpo", "dapo", "rloo", "reinforce-pp", "gspo", "cispo", "visual-rft", "sft"]


def scene(policy: ToyPolicy):
    groups = [3, 4, 2]
    requests = [Request(record=r, n=g) for r, g in zip(records(3), groups, strict=True)]
    rollouts = policy.rollout(requests, Streams(0, 0))
    reward = torch.tensor(zeros(rollouts.outputs, rollouts.records, rollouts.info), dtype=torch.float64)
    reward = reward + torch.arange(len(rollouts)) * 0.1
    return Scored(rollouts, reward[:, None], torch.ones(1).double(), ["zeros"])


def gradients(recipe_name: str, cut: str, *, two_pass: bool, drift: float = 0.05, options=None):
    """Gradients of one update whose policy has drifted from the sampler, so ratios differ from 1."""
    recipe = parse(recipe_name, recipes.read(recipe_name), unit="decision", options=options)
    policy = ToyPolicy(cut=cut)
    scored = scene(policy)
    objective = Objective(recipe, channel="tokens", unit="decision", provides=policy.provides)
    policy.keep_reference("tokens")
    with torch.no_grad():
        policy.own += drift * torch.arange(policy.own.numel(), dtype=torch.float64).reshape(policy.own.shape).sin()
    table = table_of(scored, "tokens")
    old = table["sampler_logp_nt"]
    ref = evaluate(policy, scored.rollouts, {"logp_nt"}, channel="tokens", reference=True)["logp_nt"]
    table = objective.prepare(table.updated({"old_logp_nt": old, "ref_logp_nt": ref - 0.1}))
    result = streaming_update(policy, objective, scored.rollouts, table, channel="tokens", two_pass=two_pass)
    return result, [p.grad.clone() for p in policy.parameters_of("tokens")]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("cut", "two_pass"), [("rows", False), ("rows", True), ("columns", False), ("prompts", True)])
def test_pieces_equal_whole_graph(recipe: str, cut: str, two_pass: bool) -> None:
    whole, expected = gradients(recipe, "whole", two_pass=False)
    result, got = gradients(recipe, cut, two_pass=two_pass)
    assert result.pieces > 1
    assert result.loss == pytest.approx(whole.loss, abs=1e-12)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-10, rtol=0)
    assert any(g.abs().max() > 1e-3 for g in expected)
    for name, (total, count) in whole.stats.items():
        assert result.stats[name] == pytest.approx((total, count), abs=1e-10)


def test_row_scope_takes_two_passes_when_pieces_are_columns() -> None:
    assert gradients("gspo", "columns", two_pass=False)[0].passes == 2
    assert gradients("gspo", "rows", two_pass=False)[0].passes == 1
    assert gradients("grpo", "columns", two_pass=False)[0].passes == 1


def test_whole_graph_equals_plain_autograd() -> None:
    """The objective against the formula written out, with the dapo recipe's token mean."""
    policy = ToyPolicy(cut="whole")
    scored = scene(policy)
    recipe = parse("dapo", recipes.read("dapo"), unit="decision", options={"shape": []})
    objective = Objective(recipe, channel="tokens", unit="decision", provides=policy.provides)
    table = objective.prepare(table_of(scored, "tokens"))
    streaming_update(policy, objective, scored.rollouts, table, channel="tokens")
    got = [p.grad.clone() for p in policy.parameters_of("tokens")]
    for p in policy.parameters_of("tokens"):
        p.grad = None
    prompts = torch.stack([policy._prompt(r) for r in scored.rollouts.records])
    logp = ((prompts @ policy.shared)[:, None] + policy.own).log_softmax(-1)
    logp = logp.gather(-1, torch.stack(scored.rollouts.rows)[..., None])[..., 0]
    reward, prompt = scored.reward_n, scored.rollouts.keys["prompt"]
    adv = torch.zeros_like(reward)
    for g in prompt.unique():
        r = reward[prompt == g]
        adv[prompt == g] = (r - r.mean()) / (r.std() + 1e-6)
    mask = scored.rollouts.tables["tokens"]["mask_nt"]
    (-(adv[:, None] * logp * mask).sum() / mask.sum()).backward()
    for a, p in zip(got, policy.parameters_of("tokens"), strict=True):
        assert torch.allclose(a, p.grad, atol=1e-12)


def test_shared_part_runs_once_per_bundle() -> None:
    policy = ToyPolicy(cut="rows")
    scored = scene(policy)
    recipe = parse("grpo", recipes.read("grpo"), options={"penalties": []})
    objective = Objective(recipe, channel="tokens", unit="decision", provides=policy.provides)
    table = objective.prepare(table_of(scored, "tokens"))
    result = streaming_update(policy, objective, scored.rollouts, table, channel="tokens")
    assert (policy.opened, result.pieces) == (3, 5)
