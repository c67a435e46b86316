"""Tiny random checkpoints on disk and a plain driver of the policy contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.training.policy import Needs
from mmrl.training.rollouts import Request, Rollouts
from mmrl.vlm import tiny
from mmrl.vlm.config import Inputs, Model, Sampling
from mmrl.vlm.family import load
from mmrl.vlm.policy import VlmPolicy

torch.set_num_threads(1)


def picture(height: int, width: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """kind -> folder written by save_pretrained."""
    root = tmp_path_factory.mktemp("tiny")
    return {kind: tiny.build(kind, root / kind) for kind in tiny.KINDS}


@pytest.fixture(scope="session")
def records() -> list[Record]:
    """One picture, no picture, two pictures of different sizes: prompts of different lengths."""
    return [
        Record("a", "detection", "Where is 7?", (picture(24, 16, 0),)),
        Record("b", "counting", "Count"),
        Record("c", "detection", "Two of them here", (picture(16, 16, 1), picture(32, 24, 2))),
    ]


@pytest.fixture
def make(checkpoints: dict[str, Path]) -> Callable[..., VlmPolicy]:
    """make(kind, double=..., sampling={...}, inputs={...}, **model options)"""

    def build(
        kind: str = "qwen3_vl",
        *,
        double: bool = False,
        path: str | Path | None = None,
        sampling: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **options: Any,
    ) -> VlmPolicy:
        model = Model(path=str(path or checkpoints[kind]), **options)
        policy = load(
            model, Sampling(**({"max_new_tokens": 10} | (sampling or {}))), Inputs(**(inputs or {})), device="cpu"
        )
        if double:
            policy.model.double()
        return policy

    return build


@pytest.fixture
def ragged(records: list[Record]) -> list[Request]:
    """Groups of 3, 1 and 4."""
    return [Request(record, n) for record, n in zip(records, (3, 1, 4), strict=True)]


@pytest.fixture
def streams() -> Streams:
    return Streams(seed=0, step=0)


@pytest.fixture
def float64_everywhere() -> Callable[[], AbstractContextManager[None]]:
    """transformers computes norms and rotations in float32 whatever the model's type; inside, in float64 too."""

    @contextmanager
    def inside() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "float32", torch.float64)
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            yield

    return inside


@pytest.fixture
def backward() -> Callable[..., tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """backward(policy, rollouts, ...) -> (tables, gradients) of a loss with random coefficients per decision."""

    def run(
        policy: VlmPolicy, rollouts: Rollouts, *, scope: str = "decision", reducers: dict[str, Any] | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        shape = rollouts.tables["tokens"]["mask_nt"].shape
        names = ["logp_nt", "entropy_nt", *(reducers or {})]
        generator = torch.Generator().manual_seed(3)
        coef = {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n in names}
        tables = {n: torch.full(shape, float("nan"), dtype=torch.float64) for n in names}
        policy.model.zero_grad()
        needs = Needs(frozenset({"logp_nt", "entropy_nt"}), reducers or {})
        for bundle in policy.bundles(rollouts, channel="tokens", update=0, scope=scope):  # type: ignore[arg-type]
            shared = policy.open(bundle, grad=True)
            for piece in bundle.pieces:
                raw = policy.evaluate(piece, shared, needs)
                torch.stack([(raw[n] * coef[n][piece.rows]).sum() for n in names]).sum().backward()
                for n in names:
                    tables[n][piece.rows] = raw[n].detach().double()
            policy.close(shared)
        grads = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
        return tables, grads

    return run
