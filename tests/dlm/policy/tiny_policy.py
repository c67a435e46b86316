"""Policies over tiny random checkpoints, in float64, and sampled rows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dlm.config import Inputs, Model, Sampling
from dlm.family import load
from dlm.policy import ElboPolicy, TokenPolicy
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.training.rollouts import Request, Rollouts

PROMPTS = ("12+3=", "7=", "what is 40-2?")
RECORDS = [Record(f"r{i}", "toy", prompt, answer="1", response="x" * (3 + 2 * i)) for i, prompt in enumerate(PROMPTS)]


def policy(
    path: Path,
    kind: type[ElboPolicy] = TokenPolicy,
    *,
    budget: int = 100_000,
    packing: bool = False,
    likelihood: dict[str, Any] | None = None,
    **sampling: Any,
) -> ElboPolicy:
    own = {"max_new_tokens": 11, "block": 4, "steps": 6, "likelihood": likelihood or {"name": "trajectory"}}
    found = load(
        Model(path=str(path), autocast="off", piece_tokens=budget, packing=packing),
        Sampling.model_validate(own | sampling),
        Inputs(),
        device="cpu",
        kind=kind,
    )
    found.model.double()
    return found


def sampled(one: ElboPolicy, n: int = 2, **overrides: Any) -> Rollouts:
    requests = [Request(record, n, sampling=overrides) for record in RECORDS]
    return one.rollout(requests, Streams(5, 1))


def gradient(one: ElboPolicy) -> torch.Tensor:
    parts = [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in one.model.parameters()]
    return torch.cat([p.double() for p in parts])
