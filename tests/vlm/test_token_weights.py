"""Token weights inside the policy: the group's divergence while the head is walked, and a streamed update with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl import recipes
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.streams import Streams
from mmrl.errors import UserError
from mmrl.training.batch import Scored, table_of
from mmrl.training.objectives import objectives
from mmrl.training.rollouts import Request, Rollouts
from mmrl.training.update import evaluate, streaming_update
from mmrl.vlm import head as vlm_head

sys.path.insert(0, str(Path(__file__).parent))
from vlm_divergence import by_rows

CHANNELS = ("divergence_nt", "divergence_active_nt", "js_nt", "js_active_nt")
REWARD = [1.0, 0.0, 0.5, 0.25, 1.0, 0.0, 0.5, 0.3]


def tw(policy: Any, **options: Any) -> Objective:
    recipe = parse("tw-grpo", recipes.read("tw-grpo"), unit="decision", options=options)
    return Objective(recipe, channel="tokens", unit="decision", provides=policy.provides)


def scored(rollouts: Rollouts) -> Scored:
    reward = torch.tensor(REWARD, dtype=torch.float64)
    return Scored(rollouts, reward[:, None], torch.ones(1).double(), ["soft"])


def gradients(policy: Any) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return found


def test_every_form_and_chunk_gives_the_same_divergence(
    make: Callable[..., Any],
    ragged: list[Request],
    streams: Streams,
    float64_everywhere: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shared prefix or not, one column or all at a time, one piece or several, groups apart: the same table, and that
    of whole log-softmax tables. The groups of a piece differ in length."""
    plain = make("qwen3_vl", double=True, shared_prefix="off")
    forms = ("cache", "packed", "off")
    sizes = ((1, 1, 4096), (5, 1 << 23, 4096), (1024, 700, 4096), (1024, 1 << 23, 256))
    others = [
        (make("qwen3_vl", double=True, shared_prefix=form, head_chunk=chunk, piece_tokens=budget), block)
        for form in forms
        for chunk, block, budget in sizes
    ]
    with float64_everywhere():
        records = [request.record for request in ragged]
        asked = [
            Request(records[k], n, keys={"prompt": k}, sampling={"max_new_tokens": most}, first_sample=first)
            for k, n, most, first in ((0, 3, 4, 0), (1, 1, 7, 0), (2, 2, 5, 0), (2, 2, 10, 2))
        ]
        rollouts = plain.rollout(asked, streams)
        lengths = rollouts.tables["tokens"]["mask_nt"].sum(1)
        assert len({int(lengths[a:b].max()) for a, b in ((0, 3), (3, 4), (4, 8))}) > 1 and len(lengths[4:].unique()) > 1
        want = evaluate(plain, rollouts, set(CHANNELS), channel="tokens")
        pieces = [p for b in plain.bundles(rollouts, channel="tokens", update=0, scope="group") for p in b.pieces]
        assert len(pieces) == 1
        for name, table in by_rows(plain, rollouts).items():
            assert torch.allclose(want[name], table, rtol=1e-9, atol=1e-10), name
        for policy, block in others:
            monkeypatch.setattr(vlm_head, "BLOCK_ON_CPU", block)
            got = evaluate(policy, rollouts, set(CHANNELS), channel="tokens")
            for name in CHANNELS:
                assert torch.allclose(got[name], want[name], rtol=1e-10, atol=1e-10), (policy.form, block, name)
        alone = rollouts.select([4, 5, 6, 7])
        got = evaluate(plain, alone, {"divergence_nt"}, channel="tokens")["divergence_nt"]
        assert torch.allclose(got, want["divergence_nt"][4:, : got.shape[1]], rtol=1e-10, atol=1e-10)


def test_streaming_equals_the_whole_graph(
    make: Callable[..., Any], ragged: list[Request], streams: Streams, float64_everywhere: Callable[[], Any]
) -> None:
    """Several pieces of whole groups, two exact passes, and one piece: the same loss and gradient. It is that of the
    policy-gradient loss times the weights as constants."""
    policy, small = make("qwen3_vl", double=True), make("qwen3_vl", double=True, piece_tokens=256)
    objective = tw(policy)
    assert objective.scope == "group" and objective.needs()[""] == {"logp_nt", "divergence_nt"}
    ways: list[tuple[Any, dict[str, bool], int]] = [
        (policy, {}, 1),
        (small, {}, 1),
        (policy, {"two_pass": True}, 2),
        (small, {"two_pass": True, "keep_scope": False}, 2),
    ]
    with float64_everywhere():
        rollouts = policy.rollout(ragged, streams)
        table = objective.prepare(table_of(scored(rollouts), "tokens"))
        found = []
        for one, more, passes in ways:
            update = streaming_update(one, objective, rollouts, table, channel="tokens", **more)
            assert update.passes == passes and (update.pieces > 1) == (one is small)
            found.append((update.loss, gradients(one)))
        divergence = evaluate(policy, rollouts, {"divergence_nt"}, channel="tokens")
        weight = objective.weight[0](table.updated(divergence))
        plain = parse("plain", {"advantage": "raw", "gate": "reinforce", "reduce": "token-mean"})
        constant = Objective(plain, channel="tokens", unit="decision", provides=policy.provides)
        weighted = table.updated({"adv_nt": table["adv_nt"] * weight})
        streaming_update(policy, constant, rollouts, weighted, channel="tokens")
        found.append((found[0][0], gradients(policy)))
    for loss, grads in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-10)
        for name, grad in found[0][1].items():
            assert torch.allclose(grads[name], grad, rtol=1e-8, atol=1e-10), name
    mask = table["mask_nt"]
    assert float(weight[mask].max()) > 1.6 and float(weight[mask].min()) == 1 and (weight[~mask] == 0).all()


def test_alpha_one_is_the_recipe_without_weights_bit_for_bit(
    make: Callable[..., Any], ragged: list[Request], streams: Streams
) -> None:
    policy = make("qwen3_vl")
    rollouts = policy.rollout(ragged, streams)
    one = tw(policy, **{"weight.tw.alpha": 1.0})
    recipe = parse("token-mean-soft", recipes.read("token-mean-soft"), unit="decision")
    plain = Objective(recipe, channel="tokens", unit="decision", provides=policy.provides)
    found = []
    for objective in (one, plain):
        table = objective.prepare(table_of(scored(rollouts), "tokens"))
        update = streaming_update(policy, objective, rollouts, table, channel="tokens")
        assert update.pieces == 1
        found.append((update.loss, gradients(policy)))
    assert found[0][0] == found[1][0] and found[0][0] != 0
    assert all(torch.equal(found[0][1][name], grad) for name, grad in found[1][1].items())


def test_no_table_of_all_logits(
    make: Callable[..., Any], ragged: list[Request], streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the rows: no more positions than the limits ask for, all rows of the piece at once, no graph."""
    policy = make("qwen3_vl", head_chunk=8)
    rollouts = policy.rollout(ragged, streams)
    seen: list[torch.Tensor] = []

    def watch(logits_ncv: torch.Tensor, hidden_ncd: torch.Tensor) -> torch.Tensor:
        seen.append(logits_ncv)
        return logits_ncv[..., 0]

    with monkeypatch.context() as patch:
        patch.setattr(vlm_head, "constant", lambda name: True)
        (bundle,) = policy.bundles(rollouts, channel="tokens", update=0, scope="group")
        hidden = torch.randn(8, 10, policy.head().weight.shape[1], requires_grad=True)
        vlm_head.reduce_logits(hidden, policy.head(), {"x_nt": watch}, {}, size=8)
        assert len(bundle.pieces) == 1
    assert [x.shape[:2] for x in seen] == [(8, 1)] * 10 and not any(x.requires_grad for x in seen)


def test_a_policy_without_reducers_refuses_before_weights_load() -> None:
    from mmrl.selection.uniform import Uniform
    from mmrl.training.policy import Policy
    from mmrl.vlm.policy import VlmPolicy

    recipe = parse("tw-grpo", recipes.read("tw-grpo"), unit="decision")

    class Without(VlmPolicy):
        reduces = False

    assert not Policy.reduces and VlmPolicy.reduces
    assert objectives(recipe, VlmPolicy, Uniform)["tokens"].scope == "group"
    with pytest.raises(UserError, match=r"needs divergence_nt, which this policy does not provide \(weight 'tw'\)"):
        objectives(recipe, Without, Uniform)
