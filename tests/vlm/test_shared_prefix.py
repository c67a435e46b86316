"""The fast forms give the log-probabilities and every parameter gradient of the plain repeated-prompt path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.training.rollouts import Request
from mmrl.vlm import tiny
from mmrl.vlm.adapters import Shape
from mmrl.vlm.rows import Row

FORMS = [
    ("cache", 100_000, "decision", {}),
    ("cache", 260, "decision", {}),
    ("cache", 1, "group", {}),
    ("packed", 100_000, "decision", {}),
    ("packed", 80, "decision", {}),
    ("packed", 100_000, "decision", {"gradient_checkpointing": True}),
    ("packed", 100_000, "decision", {"attention": "eager"}),
    ("off", 150, "decision", {}),
]


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.8, "top_k": 20, "temperature": 0.7}])
def test_equal_to_repeated_prompts(
    kind: str,
    sampling: dict[str, Any],
    make: Callable[..., Any],
    ragged: list[Request],
    streams: Streams,
    backward: Callable[..., Any],
    float64_everywhere: Callable[..., Any],
) -> None:
    plain = make(kind, double=True, shared_prefix="off", sampling=sampling)
    with float64_everywhere():
        rollouts = plain.rollout(ragged, streams)
        tables, grads = backward(plain, rollouts)
    mask = rollouts.tables["tokens"]["mask_nt"]
    assert len(grads) == len(list(plain.model.parameters())), "every parameter takes part, vision tower included"
    assert (tables["logp_nt"][~mask] == 0).all()
    gap = (tables["logp_nt"] - rollouts.tables["tokens"]["sampler_logp_nt"])[mask].abs().max()
    assert gap < 1e-10
    for form, budget, scope, options in FORMS:
        fast = make(kind, double=True, shared_prefix=form, piece_tokens=budget, sampling=sampling, **options)
        pieces = [p for b in fast.bundles(rollouts, channel="tokens", update=0, scope=scope) for p in b.pieces]
        assert (len(pieces) > 1) == (budget < 100_000)
        with float64_everywhere():
            fast_tables, fast_grads = backward(fast, rollouts, scope=scope)
        label = f"{form} {budget} {scope} {options}"
        for name in tables:
            assert (fast_tables[name] - tables[name]).abs().max() < 1e-10, (label, name)
        assert fast_grads.keys() == grads.keys(), label
        for name, grad in grads.items():
            assert (fast_grads[name] - grad).abs().max() < 1e-10 * max(1.0, float(grad.abs().max())), (label, name)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_repeated_path_equals_plain_transformers(
    kind: str, make: Callable[..., Any], ragged: list[Request], streams: Streams, backward: Callable[..., Any]
) -> None:
    """Positions left to the model itself (`mm_token_type_ids` extended by zeros), one row at a time."""
    policy = make(kind, shared_prefix="off")
    rollouts = policy.rollout(ragged, streams)
    tables, _ = backward(policy, rollouts)
    suppressed = torch.tensor(sorted(policy.suppressed))
    for i, row in enumerate(rollouts.rows):
        ids = torch.cat([row.prompt.ids, row.ids])[None]
        types = policy.shape.token_types(row.prompt.ids[None])
        types = torch.cat([types, torch.zeros(1, len(row), dtype=types.dtype)], 1)
        policy.shape.inner.rope_deltas = None
        with torch.no_grad():
            logits = policy.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, **row.prompt.media
            ).logits[0]
        logits[:, suppressed] = -torch.inf
        logp = torch.log_softmax(logits[len(row.prompt) - 1 : -1], -1).gather(1, row.ids[:, None])[:, 0]
        assert (tables["logp_nt"][i, : len(row)] - logp).abs().max() < 1e-5


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_position_ids_matter(kind: str, make: Callable[..., Any], ragged: list[Request], streams: Streams) -> None:
    """A guard for the tests above: with completions one position off, the tiny models answer differently."""
    policy = make(kind)
    rollouts = policy.rollout(ragged[:1], streams)
    bundle = policy.bundles(rollouts, channel="tokens", update=0, scope="batch")[0]
    from mmrl.training.policy import Needs

    needs = Needs(frozenset({"logp_nt"}))
    with torch.no_grad():
        right = policy.evaluate(bundle.pieces[0], policy.open(bundle, grad=False), needs)["logp_nt"]
        rollouts.rows[0].prompt.next_position += 1
        wrong = policy.evaluate(bundle.pieces[0], policy.open(bundle, grad=False), needs)["logp_nt"]
    assert (right - wrong).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["cache", "packed"])
def test_pictures_are_encoded_once_per_prompt(
    form: str,
    make: Callable[..., Any],
    ragged: list[Request],
    streams: Streams,
    backward: Callable[..., Any],
) -> None:
    policy = make("qwen3_vl", shared_prefix=form)
    pictures: list[int] = []
    policy.shape.vision.register_forward_pre_hook(
        lambda module, args, kwargs: pictures.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    rollouts = policy.rollout(ragged, streams)
    assert sum(pictures) == 3 == rollouts.stats["pictures"]
    pictures.clear()
    backward(policy, rollouts)
    assert sum(pictures) == 3
    pictures.clear()
    plain = make("qwen3_vl", shared_prefix="off")
    plain.shape.vision.register_forward_pre_hook(
        lambda module, args, kwargs: pictures.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    backward(plain, rollouts)
    assert sum(pictures) == 3 * 1 + 4 * 2


def test_the_prefix_goes_backward_once(
    make: Callable[..., Any], records: list[Record], streams: Streams, backward: Callable[..., Any]
) -> None:
    """Many chunks of one prompt, one forward and one backward of the vision tower."""
    policy = make("qwen2_5_vl", piece_tokens=60)
    rollouts = policy.rollout([Request(records[0], 6)], streams)
    calls = {"forward": 0, "backward": 0}

    def forward(*_: Any) -> None:
        calls["forward"] += 1

    def back(*_: Any) -> None:
        calls["backward"] += 1

    policy.shape.vision.register_forward_hook(forward)
    policy.shape.projectors[0].register_full_backward_hook(back)
    bundles = policy.bundles(rollouts, channel="tokens", update=0, scope="decision")
    assert len(bundles) == 1 and len(bundles[0].pieces) == 6
    backward(policy, rollouts)
    assert calls == {"forward": 1, "backward": 1}


def test_rows_do_not_see_each_other_when_packed(
    make: Callable[..., Any], records: list[Record], streams: Streams, backward: Callable[..., Any]
) -> None:
    policy = make("qwen2_vl", shared_prefix="packed")
    rollouts = policy.rollout([Request(records[0], 3)], streams)
    before, _ = backward(policy, rollouts)
    old = rollouts.rows[1]
    rollouts.rows[1] = Row(old.prompt, old.ids.flip(0))
    after, _ = backward(policy, rollouts)
    assert torch.equal(before["logp_nt"][[0, 2]], after["logp_nt"][[0, 2]])
    assert not torch.equal(before["logp_nt"][1], after["logp_nt"][1])


def test_scope_keeps_groups_whole(make: Callable[..., Any], ragged: list[Request], streams: Streams) -> None:
    policy = make("qwen3_vl", piece_tokens=1)
    rollouts = policy.rollout(ragged, streams)

    def rows(scope: str) -> list[list[int]]:
        bundles = policy.bundles(rollouts, channel="tokens", update=0, scope=scope)
        return sorted(sorted(p.rows.tolist()) for b in bundles for p in b.pieces)

    assert rows("decision") == [[i] for i in range(8)]
    assert rows("group") == [[0, 1, 2], [3], [4, 5, 6, 7]]
    assert rows("batch") == [list(range(8))]


def test_single_token_completions_need_no_forward(
    make: Callable[..., Any], ragged: list[Request], streams: Streams, backward: Callable[..., Any]
) -> None:
    """The first token is predicted by the prompt alone, also in its gradient."""
    grads = {}
    for form in ("off", "cache", "packed"):
        policy = make("qwen3_vl", shared_prefix=form, sampling={"max_new_tokens": 1})
        rollouts = policy.rollout(ragged, streams)
        assert rollouts.stats["forwards"] == 1
        _, grads[form] = backward(policy, rollouts)
    for form in ("cache", "packed"):
        for name, grad in grads["off"].items():
            assert torch.allclose(grads[form][name], grad, atol=1e-5, rtol=1e-4), (form, name)


def test_gradient_on_a_prefix_opened_without_is_an_error(
    make: Callable[..., Any], ragged: list[Request], streams: Streams
) -> None:
    from mmrl.training.policy import Needs

    policy = make("qwen3_vl")
    rollouts = policy.rollout(ragged, streams)
    bundle = policy.bundles(rollouts, channel="tokens", update=0, scope="decision")[0]
    shared = policy.open(bundle, grad=False)
    with pytest.raises(RuntimeError, match="opened without"):
        policy.evaluate(bundle.pieces[0], shared, Needs(frozenset({"logp_nt"})))


def test_shape_finds_the_parts(make: Callable[..., Any]) -> None:
    shape = Shape(make("qwen3_vl").model)
    inside = {id(p) for p in shape.vision.parameters()}
    assert all(id(p) in inside for m in shape.projectors for p in m.parameters())
    assert len(shape.projectors) == 2  # the merger and the deepstack mergers


@pytest.mark.parametrize("options", [{}, {"adapter": {"kind": "lora", "rank": 2}}])
@pytest.mark.parametrize("form", ["cache", "packed"])
def test_bfloat16_autocast_stays_close(
    form: str,
    options: dict[str, Any],
    make: Callable[..., Any],
    ragged: list[Request],
    streams: Streams,
    backward: Callable[..., Any],
) -> None:
    """Mixed precision, as on a GPU: float32 log-prob arithmetic, float32 gradients, both near the float32 run."""
    plain = make("qwen3_vl", shared_prefix="off", **options)
    mixed = make("qwen3_vl", shared_prefix=form, autocast="bf16", head_chunk=7, **options)
    mixed.load_state_dict(plain.state_dict())
    rollouts = mixed.rollout(ragged, streams)
    assert rollouts.tables["tokens"]["sampler_logp_nt"].dtype == torch.float32
    tables, grads = backward(plain, rollouts)
    mixed_tables, mixed_grads = backward(mixed, rollouts)
    gap = (mixed_tables["logp_nt"] - tables["logp_nt"]).abs().max()
    assert 1e-4 < gap < 0.3, "close, and yet not the same computation"
    assert mixed_grads.keys() == grads.keys()
    flat = {k: torch.cat([g.flatten() for g in v.values()]) for k, v in (("plain", grads), ("mixed", mixed_grads))}
    assert flat["mixed"].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(flat["plain"], flat["mixed"], 0) > 0.99
