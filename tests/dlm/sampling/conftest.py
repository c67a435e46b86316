"""Tiny models of both kinds of attention in float64, and what makes jobs of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlm.models.base import Traits
from dlm.models.layers import Shape, Transformer
from dlm.sampling.sampler import Job, Sampled, Sampler, Settings
from mmrl.core.head import Head

VOCABULARY, MASK, EOS, PAD = 17, 16, 15, 14
BLOCK = 4


def build(attention: str, *, seed: int = 0, sharpness: float = 1.5, **other: Any) -> Transformer:
    torch.manual_seed(seed)
    traits = Traits("toy", MASK, (EOS,), PAD, False, attention, BLOCK if attention == "block" else None, 512, ())
    shape = Shape(VOCABULARY, 32, 48, 2, 4, 2, 8, 10000.0, 1e-6)
    model = Transformer(shape, replace(traits, **other)).double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:  # far from uniform, and different at different positions
                scale = 1.0 if "embed" in name else (sharpness if "head" in name else 2.0) / weight.shape[1] ** 0.5
                weight.normal_(0.0, scale)
    return model


def head_of(model: Transformer) -> Head:
    weight = model.head.weight.detach()
    return Head(weight, None, torch.zeros(weight.shape[0], dtype=weight.dtype), weight.dtype)


def sampler(model: Transformer, *, block: int | None = BLOCK, batch_rows: int = 16, **options: Any) -> Sampler:
    options = {"ends": {EOS}, "suppressed": {PAD}, "head": head_of(model)} | options
    return Sampler(model, block=block, batch_rows=batch_rows, **options)


def job(settings: Settings, *, prompt: int | Sequence[int] = 5, limit: int = 12, seed: int = 0) -> Job:
    if isinstance(prompt, int):
        ids = torch.randint(0, 14, (prompt,), generator=torch.Generator().manual_seed(1000 + prompt))
    else:
        ids = torch.tensor(prompt)
    return Job(ids, limit, settings, torch.Generator().manual_seed(seed))


def mixed(settings: Settings, rows: int = 5) -> list[Job]:
    """Prompts and completions of different length."""
    return [job(settings, prompt=3 + 2 * i, limit=(12, 9, 16, 5, 10)[i % 5], seed=i) for i in range(rows)]


def same(a: Sampled, b: Sampled) -> None:
    assert a.ids.tolist() == b.ids.tolist()
    assert a.steps.tolist() == b.steps.tolist()
    torch.testing.assert_close(a.logp, b.logp, atol=1e-9, rtol=0)
    assert (a.forwards, a.length, a.finished) == (b.forwards, b.length, b.finished)


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    return SimpleNamespace(
        build=build, head_of=head_of, sampler=sampler, job=job, mixed=mixed, same=same, mask=MASK, eos=EOS, pad=PAD
    )


@pytest.fixture(params=["full", "block"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(request.param)
