"""Tiny random video policies and a plain driver of the policy contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl.training.policy import Needs
from mmrl.training.rollouts import Rollouts
from mmrl.vlm.config import Model, Sampling
from video import tiny
from video.config import Inputs
from video.family import load
from video.policy import VideoPolicy

torch.set_num_threads(1)


def make(
    path: Path,
    *,
    double: bool = False,
    sampling: dict[str, Any] | None = None,
    inputs: dict[str, Any] | None = None,
    **options: Any,
) -> VideoPolicy:
    policy = load(
        Model(path=str(path), **options),
        Sampling(**({"max_new_tokens": 6} | (sampling or {}))),
        Inputs(**(tiny.INPUTS | (inputs or {}))),
        device="cpu",
    )
    if double:
        policy.model.double()
    return policy


@contextmanager
def float64_everywhere() -> Iterator[None]:
    """transformers computes norms and rotations in float32 whatever the model's type; inside, in float64 too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def backward(policy: VideoPolicy, rollouts: Rollouts) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(log-probs [N, T], gradients) of a loss with random coefficients per decision."""
    shape = rollouts.tables["tokens"]["mask_nt"].shape
    coef = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    table = torch.full(shape, float("nan"), dtype=torch.float64)
    policy.model.zero_grad()
    for bundle in policy.bundles(rollouts, channel="tokens", update=0, scope="decision"):
        shared = policy.open(bundle, grad=True)
        for piece in bundle.pieces:
            raw = policy.evaluate(piece, shared, Needs(frozenset({"logp_nt"})))["logp_nt"]
            (raw * coef[piece.rows]).sum().backward()
            table[piece.rows] = raw.detach().double()
        policy.close(shared)
    return table, {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
