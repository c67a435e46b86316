"""A completion and its step map are enough to recompute the sampler's log-probabilities, without any sampler code."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dlm import attention
from dlm.models.layers import Transformer
from dlm.sampling.sampler import Sampled, Settings


def recomputed(model: Transformer, prompt: Tensor, row: Sampled, temperature: float, banned: list[int]) -> Tensor:
    """One row, no padding, no batch: at step s the model sees every position with steps >= s masked."""
    mask = model.traits.mask_id
    start, found = len(prompt), torch.zeros(len(row.ids), dtype=torch.float64)
    sets = None if row.kept is None else row.kept.ids.split(row.kept.counts.tolist())
    for step in range(row.forwards):
        hidden_yet = (row.steps >= step) | (row.steps < 0)
        ids = torch.cat([prompt, row.ids.masked_fill(hidden_yet, mask)])[None]
        positions = torch.arange(ids.shape[1])[None]
        attend = None
        if model.traits.block:
            attend = attention.block_causal(positions, torch.ones_like(ids, dtype=torch.bool), model.traits.block)
        with torch.no_grad():
            logits = model.head(model.hidden(ids, positions_nl=positions, attend_nqk=attend))[0, start:]
        logits[:, banned] = -torch.inf
        for i in (row.steps == step).nonzero()[:, 0].tolist():
            one = logits[i] / temperature
            if sets is not None:
                assert len(sets[i])
                one = one.masked_fill(~torch.isin(torch.arange(len(one)), sets[i]), -torch.inf)
            found[i] = torch.log_softmax(one, -1)[row.ids[i]]
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"top_p": 0.8},
        {"top_k": 4, "top_p": 0.9, "temperature": 0.7},
        {"rule": "threshold", "threshold": 0.4},
        {"rule": "factor", "factor": 1.5, "temperature": 0.7},
        {"order": "random", "temperature": 1.3},
        {"temperature": 0.0},
        {"eos": "never", "order": "entropy"},
        {"greedy": True, "temperature": 0.7, "top_p": 0.5},
    ],
)
def test_logp_follows_from_ids_and_steps(toy: SimpleNamespace, model: Transformer, options: dict[str, Any]) -> None:
    settings = Settings(**options)
    if model.traits.block and settings.temperature != 1:
        settings = replace(settings, cache="block")
    jobs = toy.mixed(settings)
    banned = [toy.mask, toy.pad] + ([toy.eos] if settings.eos == "never" else [])
    for job, row in zip(jobs, toy.sampler(model)(jobs), strict=True):
        again = recomputed(model, job.prompt_ids, row, settings.temperature or 1.0, banned)
        torch.testing.assert_close(row.logp, again, atol=1e-9, rtol=0)
        assert (row.kept is not None) == settings.cuts
        if row.kept is not None:
            assert int(row.kept.counts.sum()) == len(row.kept.ids) and int(row.kept.counts.min()) >= 1


def test_full_attention_that_stops_early_still_saw_the_masks_behind(toy: SimpleNamespace) -> None:
    model = toy.build("full")
    jobs = [toy.job(Settings(stop_early=True), limit=24, seed=i) for i in range(12)]
    rows = toy.sampler(model)(jobs)
    assert any((row.steps == -1).any() for row in rows)
    for job, row in zip(jobs, rows, strict=True):
        assert row.ids[row.steps == -1].eq(toy.mask).all() and len(row.ids) == 24
        torch.testing.assert_close(
            row.logp, recomputed(model, job.prompt_ids, row, 1.0, [toy.mask, toy.pad]), atol=1e-9, rtol=0
        )
