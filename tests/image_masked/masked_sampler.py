"""A network, an actor and a decoding small enough to follow, and the random numbers that a decoding used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AmusedScheduler
from torch import Tensor

from image_gen.masked import steps as rules
from image_gen.masked.sampler import Decoded, Halves, decode

CODEBOOK, MASK = 7, 9


@dataclass
class Toy:
    """Logits of a position depend on all of the canvas. One call on both halves, as a real network makes it."""

    length: int
    seed: int = 0
    dtype: torch.dtype = torch.float64
    scale: float = 2.0
    seen: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.seed)
        shape = (2, self.length, MASK + 1, CODEBOOK)
        self.own = (torch.randn(shape, generator=g, dtype=torch.float64) * self.scale).to(self.dtype)
        self.others = (torch.randn(shape, generator=g, dtype=torch.float64) * self.scale).to(self.dtype)

    def half(self, ids_nl: Tensor, which: int) -> Tensor:
        at = torch.arange(self.length)
        around = self.others[which][at, ids_nl].mean(dim=1, keepdim=True)  # [n, 1, K]
        return self.own[which][at, ids_nl] + around

    def __call__(self, ids_nl: Tensor, *, both: bool, features: bool) -> Halves:
        self.seen.append(ids_nl.clone())
        return Halves(self.half(ids_nl, 0), self.half(ids_nl, 1) if both else None)


@dataclass
class Values:
    """The same values whatever the canvas: [T, 4], or [n, T, 4] for rows that differ."""

    value_ntv: Tensor
    two: bool | None = None
    reads_features: bool = False

    def both(self, step: int) -> bool:
        return bool((self.value_ntv[..., step, 3] != 1).any()) if self.two is None else self.two

    def act(self, step: int, *, n: int, features_nld: Tensor | None) -> tuple[Tensor, Tensor]:
        value_nv = self.value_ntv[..., step, :].expand(n, -1)
        return torch.full((n, 4), 0.25), value_nv


def amused(steps: int, schedule: str = "cosine", mask_id: int = MASK) -> AmusedScheduler:
    scheduler = AmusedScheduler(mask_token_id=mask_id, masking_schedule=schedule)
    scheduler.set_timesteps(steps)
    return scheduler


def amused_values(steps: int, schedule: str = "cosine", guidance: float = 1.0) -> Tensor:
    """[T, 4] as its `step` computes them."""
    share = torch.arange(1, steps + 1) / steps
    ratio = torch.cos(share * torch.pi / 2) if schedule == "cosine" else 1 - share
    return torch.stack([ratio, amused(steps).temperatures, torch.ones(steps), torch.full((steps,), guidance)], 1)


def streams(n: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(n)]


def open_canvas(n: int, length: int) -> Tensor:
    return torch.full((n, length), MASK)


def run(canvas_nl: Tensor, value: Tensor, *, seed: int = 0, **options: Any) -> Decoded:
    """Decode with the toy network; the noise of row i is that of seed 1000 * seed + i."""
    network = options.pop("network", None) or Toy(canvas_nl.shape[1])
    actor = options.pop("actor", None) or Values(value)
    generators = options.pop("generators", None) or streams(len(canvas_nl), seed)
    return decode(
        canvas_nl=canvas_nl,
        steps=value.shape[-2],
        network=network,
        actor=actor,
        mask_id=MASK,
        generators=generators,
        **options,
    )


def recomputed(done: Decoded, network: Toy) -> Tensor:
    """Log-probabilities from ids, step map and values alone, one forward a step."""
    found = torch.zeros_like(done.logp_nl)
    for t in range(done.value_ntv.shape[1]):
        canvas = torch.where(done.steps_nl < t, done.ids_nl, MASK)
        guidance, sample = done.value_ntv[:, t, 3], done.value_ntv[:, t, 2]
        logits = rules.guided_logits(network.half(canvas, 0), network.half(canvas, 1), guidance)
        logp = rules.picked(rules.token_log_probs(logits, sample), done.ids_nl)
        found = torch.where(done.steps_nl == t, logp, found)
    return found
