"""The hand-made schedules under the actions: what each step does when the action is 0.

Axes: T steps, V = 4 variables in the order of `VARIABLES`: ratio r (share of masks left after the step), re-mask
temperature tau_r, sample temperature tau_s, guidance scale w. rho = (t + 1) / T for step t = 0 .. T-1.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor

from image_gen.masked.config import VARIABLES as VARIABLES
from mmrl.errors import UserError, nearest

RATIO, REMASK, SAMPLE, GUIDANCE = range(4)
MASK_SCHEDULES = ("cosine", "linear", "arccos")
#: Guidance above this is cut.
MAX_GUIDANCE = 30.0
#: AdaNAT's distance from the edges, in steps: no target is exactly 0 or 1, where the inverse activation ends.
MARGIN = 0.001


def base_values(
    scheduler: Any,
    steps: int,
    *,
    mask_schedule: Literal["scheduler", "cosine", "linear", "arccos"] = "scheduler",
    remask: tuple[float, float] | float = (2.0, 0.0),
    sample: float = 1.0,
    guidance: float,
) -> Tensor:
    """Values of diffusers' AmusedScheduler at `steps` steps, float32 [T, V] on the CPU.

    ratio    cosine cos(pi rho / 2), linear 1 - rho, arccos 2 arccos(rho) / pi; `scheduler`: the one of its own
             configuration. Step by step in the scheduler's own operations: floor(L * ratio) is its number of masks
             bit for bit. The last step leaves no mask: exactly 0.
    remask   the scheduler's table for this temperature: a pair (a, b) is a line from a to b, a number a line from it
             to 0.01. By step; the scheduler's `timesteps` count the other way.
    sample, guidance   constant.

    The scheduler is not changed. Raises UserError for an unknown mask schedule, ValueError for less than one step.
    """
    if steps < 1:
        raise ValueError(f"a schedule has at least one step, got {steps}")
    name = str(scheduler.config.masking_schedule) if mask_schedule == "scheduler" else mask_schedule
    if name not in MASK_SCHEDULES:
        raise UserError(f"mask schedule: unknown name {name!r}{nearest(name, MASK_SCHEDULES)}")
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps, temperature=remask)
    base_tv = torch.empty(steps, len(VARIABLES), dtype=torch.float32)
    for t in range(steps - 1):
        base_tv[t, RATIO] = _mask_ratio(name, t, steps)
    base_tv[-1, RATIO] = 0.0
    base_tv[:, REMASK] = own.temperatures
    base_tv[:, SAMPLE] = sample
    base_tv[:, GUIDANCE] = guidance
    return base_tv


def _mask_ratio(name: str, t: int, steps: int) -> Tensor:
    """One number at a time: a vectorised cosine may end in another last bit than the scheduler's."""
    rho = torch.tensor([[t + 1]], dtype=torch.float32) / steps
    if name == "cosine":
        return torch.cos(rho * math.pi / 2).squeeze()
    if name == "linear":
        return (1 - rho).squeeze()
    return (torch.acos(rho) * 2 / math.pi).squeeze()


def adanat_values(steps: int, *, guidance: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The hand-made schedule of AdaNAT's released code (arXiv 2409.00342), [T, V].

    With rho' = (t + 1 - 0.001) / T: r = cos(pi rho' / 2), tau_r = 1 - rho', tau_s = 1, and w = guidance *
    (t + 0.001) / T. This w is AdaNAT's own, for logits + w (conditional - unconditional); `mixing_guidance` turns it
    into the scale of this package's sampler. `guidance` is w_base, 1 in AdaNAT. The ratio of the last step is not used.
    """
    if steps < 1:
        raise ValueError(f"a schedule has at least one step, got {steps}")
    t = torch.arange(steps, dtype=torch.float64)
    rho = (t + 1 - MARGIN) / steps
    w = guidance * (t + MARGIN) / steps
    return torch.stack([torch.cos(math.pi * rho / 2), 1 - rho, torch.ones_like(rho), w], dim=-1).to(dtype)


def mixing_guidance(value_nv: Tensor) -> Tensor:
    """The same values with AdaNAT's guidance turned into a mixing scale, at most 30: w -> 1 + w. [..., V]

    AdaNAT adds w (conditional - unconditional) to the conditional logits; aMUSEd and Meissonic mix unconditional + w
    (conditional - unconditional). Only for the base `adanat`."""
    shifted = value_nv.clone()
    shifted[..., GUIDANCE] = (1 + value_nv[..., GUIDANCE]).clamp(max=MAX_GUIDANCE)
    return shifted
