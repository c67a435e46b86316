"""Whole completions: against plain loops, every position once, forwards, neighbours, end tokens, bad settings."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm import attention
from dlm.models.layers import Transformer
from dlm.sampling.sampler import Job, Settings
from mmrl.errors import UserError

RULES: list[dict[str, Any]] = [
    {},
    {"steps": 3},
    {"steps": 1000},
    {"rule": "threshold", "threshold": 0.4},
    {"rule": "threshold", "threshold": 0.4, "steps": 8},
    {"rule": "factor", "factor": 1.2},
    {"order": "random"},
    {"order": "margin", "temperature": 0.0},
    {"order": "entropy", "top_k": 3},
    {"order": "sequential", "eos": "late"},
    {"guidance": 0.5, "temperature": 0.0},
]


def logits_of(model: Transformer, ids_l: Tensor) -> Tensor:
    positions = torch.arange(len(ids_l))[None]
    attend = None
    if model.traits.block:
        attend = attention.block_causal(positions, torch.ones(1, len(ids_l), dtype=torch.bool), model.traits.block)
    with torch.no_grad():
        found: Tensor = model.head(model.hidden(ids_l[None], positions_nl=positions, attend_nqk=attend))[0]
    return found


def test_greedy_decoding_is_the_plain_loop_of_llada(toy: SimpleNamespace) -> None:
    """Blocks of 4, 6 steps for 12 positions: 2 a step, the most confident of the block."""
    model = toy.build("full")
    for prompt in (3, 8):
        job = toy.job(Settings(temperature=0.0, steps=6), prompt=prompt)
        x = torch.cat([job.prompt_ids, torch.full((12,), toy.mask)])
        order = torch.full((12,), -1)
        for block in range(3):
            first = prompt + 4 * block
            for step in range(2):
                logits = logits_of(model, x)
                logits[:, [toy.mask, toy.pad]] = -torch.inf
                confidence, best = torch.softmax(logits, -1).max(-1)
                for i in range(len(x)):
                    if x[i] != toy.mask or not first <= i < first + 4:
                        confidence[i] = -torch.inf
                at = confidence.topk(2).indices
                x[at] = best[at]
                order[at - prompt] = 2 * block + step
        (row,) = toy.sampler(model)([job])
        assert row.ids.tolist() == x[prompt:].tolist()
        assert row.steps.tolist() == order.tolist()
        assert row.forwards == 6


def test_block_decoding_is_the_plain_loop_of_sdar(toy: SimpleNamespace) -> None:
    """low_confidence_dynamic on the grid of positions, the prompt's tail sharing the first block."""
    model = toy.build("block")
    for prompt in (3, 6, 8):
        job = toy.job(Settings(rule="threshold", threshold=0.4, temperature=0.0, stop_early=False), prompt=prompt)
        x = torch.cat([job.prompt_ids, torch.full((12,), toy.mask)])
        order, step = torch.full((12,), -1), 0
        for first in range(prompt // 4 * 4, len(x), 4):
            last = min(first + 4, len(x))
            while bool((x[first:last] == toy.mask).any()):
                logits = logits_of(model, x[:last])[first:]
                logits[:, [toy.mask, toy.pad]] = -torch.inf
                confidence, best = torch.softmax(logits, -1).max(-1)
                confidence[x[first:last] != toy.mask] = -torch.inf
                at = (confidence > 0.4).nonzero()[:, 0]
                at = at if len(at) else confidence.argmax()[None]
                x[first + at] = best[at]
                order[first + at - prompt] = step
                step += 1
        (row,) = toy.sampler(model)([job])
        assert row.ids.tolist() == x[prompt:].tolist()
        assert row.steps.tolist() == order.tolist()
        assert row.forwards == step


@pytest.mark.parametrize("options", RULES)
def test_every_position_is_filled_once_and_never_with_a_suppressed_id(
    toy: SimpleNamespace, model: Transformer, options: dict[str, Any]
) -> None:
    jobs = toy.mixed(Settings(**options, stop_early=False))
    sampler = toy.sampler(model)
    # the likeliest tokens of all are the ones that may not be drawn
    with torch.no_grad():
        model.lm_head.weight[[toy.mask, toy.pad]] *= 10
    seen: dict[int, list[Tensor]] = {}
    rows = sampler(jobs, on_step=lambda i, ids, step: seen.setdefault(i, []).append(ids))
    for i, (job, row) in enumerate(zip(jobs, rows, strict=True)):
        assert len(row.ids) == len(row.steps) == len(row.logp) == job.limit
        assert sorted(set(row.steps.tolist())) == list(range(row.forwards))  # every step filled something
        assert not torch.isin(row.ids, torch.tensor([toy.mask, toy.pad])).any()
        shown = torch.stack(seen[i])
        assert len(shown) == row.forwards
        for step, ids in enumerate(shown):
            assert torch.equal(ids, row.ids.masked_fill(row.steps > step, toy.mask))  # what is filled stays
    assert sampler.stats.tokens == sum(job.limit for job in jobs)
    assert sampler.stats.denoising <= max(row.forwards for row in rows) * 2
    assert sampler.stats.total == sampler.stats.denoising * (2 if options.get("guidance") else 1)


def test_forwards_of_the_rules(toy: SimpleNamespace, model: Transformer) -> None:
    def forwards(prompt: int = 8, **options: Any) -> int:
        settings = Settings(stop_early=False, **options)
        (row,) = toy.sampler(model)([toy.job(settings, prompt=prompt, limit=16)])
        return int(row.forwards)

    assert [forwards(steps=s) for s in (4, 6, 8, 11, 16, 64)] == [4, 6, 8, 11, 16, 16]
    assert forwards(steps=1) == 4  # a forward per block at least
    assert forwards() == 8  # half the length
    assert forwards(rule="threshold", threshold=1.0) == forwards(rule="threshold", threshold=7.0) == 16
    assert forwards(rule="threshold", threshold=0.0) == 4
    assert forwards(rule="threshold", threshold=2.0, steps=8) == 8  # the floor of the schedule
    assert forwards(rule="factor", factor=1e-9) == 16
    assert forwards(rule="factor", factor=1e9) == 4
    assert forwards(rule="threshold", threshold=0.0, temperature=1.5, top_k=2) == 4
    assert forwards(prompt=9, steps=16) == forwards(prompt=10, steps=99) == 16  # a tail costs no step
    tail = 5 if model.traits.block else 4  # 8 + 1: a tail of one token moves the grid
    assert forwards(prompt=9, rule="threshold", threshold=0.0) == tail


@pytest.mark.parametrize("options", RULES)
def test_neighbours_and_order_change_nothing(toy: SimpleNamespace, model: Transformer, options: dict[str, Any]) -> None:
    settings = Settings(**options)
    together = toy.sampler(model)(toy.mixed(settings))
    for size in (1, 2):
        for a, b in zip(together, toy.sampler(model, batch_rows=size)(toy.mixed(settings)), strict=True):
            toy.same(a, b)
    backwards = toy.sampler(model)(toy.mixed(settings)[::-1])[::-1]
    for a, b in zip(together, backwards, strict=True):
        toy.same(a, b)


def test_guidance_compares_with_the_same_canvas_without_its_prompt(toy: SimpleNamespace, model: Transformer) -> None:
    job = toy.job(Settings(guidance=0.8, temperature=0.7, steps=4, stop_early=False), prompt=6, limit=8)
    (row,) = toy.sampler(model)([job])
    for step in range(row.forwards):
        canvas = row.ids.masked_fill(row.steps >= step, toy.mask)
        given = logits_of(model, torch.cat([job.prompt_ids, canvas]))
        without = logits_of(model, torch.cat([torch.full((6,), toy.mask), canvas]))
        logits = (without + 1.8 * (given - without))[6:] / 0.7
        logits[:, [toy.mask, toy.pad]] = -torch.inf
        for i in (row.steps == step).nonzero()[:, 0].tolist():
            assert float(torch.log_softmax(logits[i], -1)[row.ids[i]]) == pytest.approx(float(row.logp[i]), abs=1e-9)


def test_a_block_of_none_is_the_whole_completion_of_each_row(toy: SimpleNamespace) -> None:
    model = toy.build("full")
    settings = Settings(rule="threshold", threshold=0.0)
    together = toy.sampler(model, block=None)(toy.mixed(settings))
    assert [row.forwards for row in together] == [1] * 5
    random_order = Settings(order="random")
    together = toy.sampler(model, block=None)(toy.mixed(random_order))
    for a, b in zip(together, toy.sampler(model, block=None, batch_rows=1)(toy.mixed(random_order)), strict=True):
        toy.same(a, b)


def test_settings_of_each_row_are_its_own(toy: SimpleNamespace, model: Transformer) -> None:
    both = [Settings(temperature=0.0), Settings(rule="threshold", threshold=0.3, top_k=3)]
    jobs = [toy.job(both[i % 2], prompt=4 + i, seed=i) for i in range(4)]
    again = [toy.job(both[i % 2], prompt=4 + i, seed=i) for i in range(4)]
    for a, job in zip(toy.sampler(model)(jobs), again, strict=True):
        toy.same(a, toy.sampler(model)([job])[0])


def test_greedy_needs_no_random_numbers_and_depends_on_none(toy: SimpleNamespace, model: Transformer) -> None:
    jobs = [toy.job(Settings(temperature=0.0), seed=s) for s in (0, 1)]
    a, b = toy.sampler(model)(jobs)
    toy.same(a, b)
    assert torch.equal(jobs[0].generator.get_state(), torch.Generator().manual_seed(0).get_state())
    (c,) = toy.sampler(model)([toy.job(Settings(greedy=True, temperature=0.5))])
    if not model.traits.block:  # confidence is the model's own there, so that the order is the same too
        assert c.ids.tolist() == a.ids.tolist()
        assert bool((c.logp > a.logp).all())  # of a colder distribution


def test_a_seed_repeats_and_another_does_not(toy: SimpleNamespace, model: Transformer) -> None:
    def ids(seed: int) -> list[int]:
        settings = Settings(temperature=1.5, stop_early=False)
        found: list[int] = toy.sampler(model)([toy.job(settings, seed=seed, limit=32)])[0].ids.tolist()
        return found

    assert ids(0) == ids(0) != ids(1)


def test_a_prompt_may_contain_the_mask_token_and_an_end_token(toy: SimpleNamespace, model: Transformer) -> None:
    prompt = [3, toy.eos, 5, 2, toy.mask, toy.eos]  # both in the tail that shares the first block, too
    jobs = [toy.job(Settings(temperature=0.0, steps=6, eos="never"), prompt=prompt, limit=6) for _ in range(2)]
    kept = jobs[0].prompt_ids.clone()
    a, b = toy.sampler(model)(jobs)
    assert len(a.ids) == 6 and toy.mask not in a.ids.tolist()
    assert torch.equal(jobs[0].prompt_ids, kept)
    x = torch.cat([kept, a.ids.masked_fill(a.steps >= 2, toy.mask)])
    at = int((a.steps == 2).nonzero()[0])
    logits = logits_of(model, x)[len(prompt) + at]
    logits[[toy.mask, toy.pad, toy.eos]] = -torch.inf
    assert int(logits.argmax()) == int(a.ids[at])


# ---- end tokens


def fond_of_ending(toy: SimpleNamespace, attention: str, *, strength: float = 0.35, uneven: float = 0.0) -> Transformer:
    """At masked positions (at some of them, if `uneven`) the end token is the most likely one."""
    model: Transformer = toy.build(attention)
    job = toy.job(Settings(), limit=16)
    ids = torch.cat([job.prompt_ids, torch.full((16,), toy.mask)])
    positions = torch.arange(len(ids))[None]
    with torch.no_grad():
        states = model.hidden(ids[None], positions_nl=positions, attend_nqk=None)[0, 5:]
        model.lm_head.weight[toy.eos] = strength * (states[3] - uneven * states.mean(0))
    return model


def test_never_keeps_end_tokens_out(toy: SimpleNamespace, model: Transformer) -> None:
    model = fond_of_ending(toy, model.traits.attention)
    free = toy.sampler(model)([toy.job(Settings(), seed=s) for s in range(8)])
    assert any(row.finished for row in free)
    for row in toy.sampler(model)([toy.job(Settings(eos="never"), seed=s) for s in range(8)]):
        assert toy.eos not in row.ids.tolist()
        assert not row.finished and row.length == len(row.ids) == 12


def test_late_fills_end_tokens_after_all_others_of_their_block(toy: SimpleNamespace) -> None:
    """With the same draws, an end token waits as long as another token can be filled instead."""
    model = fond_of_ending(toy, "full", strength=0.8, uneven=0.6)
    settings = Settings(temperature=0.0, rule="threshold", threshold=2.0)
    free, late = (
        toy.sampler(model, block=None)([toy.job(replace(settings, eos=e), limit=16)])[0] for e in ("free", "late")
    )
    first = {e: int(row.steps[row.ids == toy.eos].min()) for e, row in (("free", free), ("late", late))}
    assert first["free"] == 0 < first["late"]
    # whenever an end token was filled, every position masked then was one
    for at in (late.ids == toy.eos).nonzero()[:, 0].tolist():
        step = int(late.steps[at])
        job = toy.job(settings, limit=16)
        logits = logits_of(model, torch.cat([job.prompt_ids, late.ids.masked_fill(late.steps >= step, toy.mask)]))[5:]
        logits[:, [toy.mask, toy.pad]] = -torch.inf
        assert set(logits.argmax(-1)[late.steps >= step].tolist()) == {toy.eos}


def test_stopping_early_changes_nothing_before_the_end(toy: SimpleNamespace, model: Transformer) -> None:
    model = fond_of_ending(toy, model.traits.attention)

    def rows(stop: bool | None) -> Any:
        settings = Settings(stop_early=stop, temperature=1.0)
        return toy.sampler(model)([toy.job(settings, limit=24, seed=s, prompt=3 + s) for s in range(8)])

    early, whole = rows(True), rows(False)
    assert any(row.forwards < other.forwards for row, other in zip(early, whole, strict=True))
    for a, b in zip(early, whole, strict=True):
        assert (a.length, a.finished) == (b.length, b.finished)
        filled = int((a.steps >= 0).sum())
        assert filled >= a.length
        assert a.ids[:filled].tolist() == b.ids[:filled].tolist()
        assert a.steps[:filled].tolist() == b.steps[:filled].tolist()
        if model.traits.block:
            assert len(a.ids) == filled  # blocks that were not decoded are cut off
        else:
            assert len(a.ids) == 24 and (a.ids[filled:] == toy.mask).all() and (a.steps[filled:] == -1).all()
    for a, b in zip(rows(None), early if model.traits.block else whole, strict=True):
        toy.same(a, b)


def test_the_length_runs_to_the_first_end_token(toy: SimpleNamespace, model: Transformer) -> None:
    model = fond_of_ending(toy, model.traits.attention)
    for row in toy.sampler(model)([toy.job(Settings(), seed=s, limit=10) for s in range(12)]):
        ids = row.ids.tolist()
        assert row.finished == (toy.eos in ids)
        assert row.length == (ids.index(toy.eos) + 1 if toy.eos in ids else len(ids))


# ---- what the confidence is of


def test_confidence_of_full_attention_is_the_models_and_of_blocks_the_samplers(
    toy: SimpleNamespace, model: Transformer
) -> None:
    """With top-k 1 the cut distribution is sure of everything, the model is not."""
    settings = Settings(rule="threshold", threshold=0.99, top_k=1, stop_early=False)

    def forwards(confidence: Any) -> int:
        job = toy.job(replace(settings, confidence=confidence), prompt=8, limit=12)
        return int(toy.sampler(model)([job])[0].forwards)

    assert forwards("sampled") == 3 < forwards("model")
    assert forwards("auto") == forwards("sampled" if model.traits.block else "model")


# ---- bad settings


def refused(toy: SimpleNamespace, model: Transformer, expected: str, **options: Any) -> None:
    limit, prompt = options.pop("limit", 4), options.pop("prompt", 4)
    jobs: list[Job] = [toy.job(Settings(**options), limit=limit, prompt=prompt)]
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        toy.sampler(model)(jobs)
    assert "\n" not in str(caught.value)


def test_caches_that_the_attention_does_not_have_are_refused(toy: SimpleNamespace) -> None:
    full, block = toy.build("full"), toy.build("block")
    refused(toy, full, "cache: block is for block attention, and toy has full attention", cache="block")
    refused(toy, block, "cache: prefix is for full attention, and toy has block attention", cache="prefix")
    refused(toy, toy.build("full", logit_shift=True), "cache: dual needs logits at their own position", cache="dual")


def test_a_completion_that_does_not_fit_is_refused(toy: SimpleNamespace) -> None:
    model = toy.build("full", window=20)
    toy.sampler(model)([toy.job(Settings(), prompt=4, limit=16)])
    refused(
        toy, model, "a prompt of 5 tokens and a completion of 16 exceed the model's window of 20", prompt=5, limit=16
    )
    refused(toy, model, "a completion of 0 positions cannot be decoded", limit=0)


def test_rows_of_a_step_are_told_in_the_order_of_the_jobs(toy: SimpleNamespace, model: Transformer) -> None:
    told: list[int] = []
    jobs = [toy.job(Settings(steps=2, stop_early=False), prompt=12 - 4 * i, limit=4, seed=i) for i in range(3)]
    toy.sampler(model)(jobs, on_step=lambda i, ids, step: told.append(i))
    assert told == [0, 1, 2, 0, 1, 2]
