"""Schedules for these tests: options in one call, small widths, generators of a row."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AmusedScheduler

from image_gen.masked import config
from image_gen.masked.schedule.net import NetSchedule, Widths
from image_gen.masked.schedule.table import TableSchedule

TINY = Widths(embed=12, channels=6, first=10, second=8, side=4, waves=8)


def options(**given: Any) -> config.Schedule:
    return config.Schedule.model_validate(given)


def table(steps: int = 4, **given: Any) -> TableSchedule:
    return TableSchedule(options(**given), steps=steps)


def net(grid: tuple[int, int] = (4, 4), *, width: int = 5, widths: Widths = TINY, **given: Any) -> NetSchedule:
    torch.manual_seed(0)
    return NetSchedule(options(kind="net", **given), steps=4, feature_width=width, grid=grid, widths=widths)


def amused(name: str = "cosine") -> AmusedScheduler:
    return AmusedScheduler(mask_token_id=31, masking_schedule=name)  # type: ignore[arg-type]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
