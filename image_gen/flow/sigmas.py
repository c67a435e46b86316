"""The table of noise levels that a sampler walks down: S+1 numbers from 1 to 0, shifted towards the noisy end."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mmrl.errors import UserError

Grid = Literal["trained", "even"]


def shifted(sigma: Tensor, *, shift: float) -> Tensor:
    """shift * sigma / (1 + (shift - 1) sigma): 0 and 1 stay, more than 1 moves levels towards the noise."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def resolution_shift(
    *, tokens: int, low: tuple[int, float] = (256, 0.5), high: tuple[int, float] = (4096, 1.15)
) -> float:
    """exp(mu), mu linear in the number of latent tokens through the points low and high (FLUX's numbers)."""
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return math.exp(low[1] + slope * (tokens - low[0]))


def sigma_table(
    *,
    steps: int,
    shift: float = 3.0,
    grid: Grid = "trained",
    train_steps: int = 1000,
    terminal: float | None = None,
) -> Tensor:
    """Noise levels s_0 = 1 > ... > s_S = 0 of diffusers' FlowMatchEulerDiscreteScheduler. float64 [S+1]

    grid: what is shifted. `trained` spaces evenly down to the lowest trained level, shifted once (SD3); `even` goes
    down to 1 / steps (FLUX, Qwen-Image: these take shift = `resolution_shift(...)`). terminal: stretch so that the
    last level above 0 is this one (Qwen-Image: 0.02). Raises UserError for values out of range.
    """
    if steps < 1 or train_steps < 2:
        raise UserError(f"sigmas: steps must be at least 1 and train_steps at least 2, got {steps}, {train_steps}")
    if not math.isfinite(shift) or shift <= 0:
        raise UserError(f"sigmas: shift must be above 0, got {shift}")
    if terminal is not None and not (0 < terminal < 1 and steps > 1):
        raise UserError(f"sigmas: terminal must be between 0 and 1 and needs 2 steps or more, got {terminal}")
    if grid not in ("trained", "even"):
        raise UserError(f"sigmas: grid must be trained or even, got {grid!r}")
    least = torch.tensor(1 / train_steps, dtype=torch.float64)
    low = float(shifted(least, shift=shift)) if grid == "trained" else 1 / steps
    level_s = shifted(torch.linspace(1, low, steps, dtype=torch.float64), shift=shift)
    if terminal is not None:
        level_s = 1 - (1 - level_s) * (1 - terminal) / (1 - level_s[-1])
    return torch.cat([level_s, level_s.new_zeros(1)])
