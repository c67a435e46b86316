"""Rollouts of masked images in batches: what is asked, which canvases go together, and one batch filled.

Axes: n images, L positions of a canvas, T decoding steps, V = 4 schedule variables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from image_gen.masked import sampler
from image_gen.masked.config import Sampling
from image_gen.masked.models.base import TokenModel
from image_gen.masked.rows import Decoding
from image_gen.masked.schedule import targets
from image_gen.masked.schedule.acting import Acting
from image_gen.masked.schedule.base import Schedule
from mmrl.errors import UserError, nearest

#: What a request may change.
OVERRIDES = ("steps", "schedule", "guidance")
SCHEDULES = ("learned", "base")


@dataclass(frozen=True)
class Asked:
    """How a canvas is filled. guidance: of the hand-made schedule, None = the configured one. explore: actions are
    drawn; otherwise their means are taken."""

    steps: int
    schedule: Literal["learned", "base"]
    guidance: float | None
    explore: bool


@dataclass(frozen=True)
class Job:
    """One picture: sample `sample` of a record."""

    prompt: str
    record: str
    sample: int
    asked: Asked


@dataclass
class Filled:
    """A batch, on the CPU. action_logp_nt: of each drawn action, [n, T-1], empty where none was drawn. finite_n: the
    model's logits were finite all along."""

    rows: list[Decoding]
    ids_nl: Tensor
    logp_nl: Tensor
    action_logp_nt: Tensor
    finite_n: Tensor
    forwards: int
    pictures: list[Tensor] = field(default_factory=list)


def asked(sampling: Sampling, overrides: Mapping[str, Any], *, greedy: bool) -> Asked:
    """What a request asks for. Raises UserError for an override that does not exist or cannot be."""
    for name in overrides:
        if name not in OVERRIDES:
            raise UserError(f"sampling override: unknown option {name!r}{nearest(name, OVERRIDES)}")
    plain = (sampling.eval_steps or sampling.steps) if greedy else sampling.steps
    steps, schedule = overrides.get("steps", plain), overrides.get("schedule", "learned")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"sampling override: steps must be a whole number of at least 1, got {steps!r}")
    if schedule not in SCHEDULES:
        raise UserError(f"sampling override: schedule must be {' or '.join(SCHEDULES)}, got {schedule!r}")
    guidance = overrides.get("guidance")
    return Asked(steps, schedule, guidance, sampling.explore and not greedy and schedule == "learned")


def batches(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Consecutive jobs that ask for the same, `size` at most."""
    found: list[list[Job]] = []
    for job in jobs:
        if found and len(found[-1]) < size and found[-1][0].asked == job.asked:
            found[-1].append(job)
        else:
            found.append([job])
    return found


@dataclass(frozen=True)
class HandMade:
    """The schedule under the actions: values [T, V] float32, and w_base (`schedule.actions.values`)."""

    base_tv: Tensor
    guidance_base: float


def hand_made(
    model: TokenModel, sampling: Sampling, schedule: Schedule, steps: int, *, guidance: float | None = None
) -> HandMade:
    """At this number of steps; `guidance` in place of the configured one. By default that is the model's own, and 1 for
    AdaNAT's formula, where it is w_base."""
    guidance = sampling.guidance if guidance is None else guidance
    if schedule.options.base == "adanat":
        scale = 1.0 if guidance is None else guidance
        return HandMade(targets.adanat_values(steps, guidance=scale), scale)
    base_tv = targets.base_values(
        model.scheduler,
        steps,
        mask_schedule=sampling.mask_schedule,
        remask=sampling.remask_temperature,
        sample=sampling.sample_temperature,
        guidance=model.guidance if guidance is None else guidance,
    )
    return HandMade(base_tv, 1.0)


def fill(
    jobs: Sequence[Job],
    network: sampler.Network,
    schedule: Schedule,
    model: TokenModel,
    *,
    positions: int,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> Filled:
    """All jobs ask for the same."""
    asked = jobs[0].asked
    device = next(model.transformer.parameters()).device
    base = hand_made(model, sampling, schedule, asked.steps, guidance=asked.guidance)
    acting = Acting(
        schedule,
        base_tv=base.base_tv.to(device),
        generators=generators if asked.explore else None,
        use_base=asked.schedule == "base",
        guidance_base=base.guidance_base,
    )
    canvas_nl = torch.full((len(jobs), positions), model.mask_id, dtype=torch.long, device=device)
    done = sampler.decode(
        canvas_nl=canvas_nl,
        steps=asked.steps,
        network=network,
        actor=acting,
        mask_id=model.mask_id,
        generators=generators,
        confidence=sampling.confidence,
    )
    deviation = schedule.deviation().detach().cpu()
    rows = [
        Decoding(job.prompt, done.ids_nl[i], done.steps_nl[i], done.raw_ntv[i], done.value_ntv[i], deviation)
        for i, job in enumerate(jobs)
    ]
    drawn = torch.zeros(len(jobs), 0) if acting.logp_nt is None else acting.logp_nt.cpu()
    return Filled(rows, done.ids_nl, done.logp_nl, drawn, done.finite_n, done.forwards)


def some_steps(rows: Sequence[Decoding], count: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Positions of `count` randomly chosen steps of each row, bool [n, L]."""
    found = []
    for row, generator in zip(rows, generators, strict=True):
        chosen = torch.randperm(row.n_steps, generator=generator)[:count]
        found.append(torch.isin(row.steps, chosen))
    return torch.stack(found)


def masked(ids: Tensor, *, prompt: str, generator: torch.Generator, dropped: float) -> Decoding:
    """A given canvas with a share cos(pi u / 2) of its positions masked, at least one: a decoding of one step at
    temperature 1 and guidance 1. With probability `dropped` it is shown without its prompt."""
    share = math.cos(math.pi / 2 * float(torch.rand((), generator=generator)))
    count = max(1, math.ceil(share * len(ids)))
    steps = torch.full_like(ids, -1)
    steps[torch.randperm(len(ids), generator=generator)[:count]] = 0
    shown = "" if float(torch.rand((), generator=generator)) < dropped else prompt
    value = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    return Decoding(shown, ids, steps, torch.zeros(1, 4), value, torch.ones(4))
