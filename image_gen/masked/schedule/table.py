"""Means of the raw actions by step alone. Axes: T steps, V = 4 variables, n rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from image_gen.masked import config
from image_gen.masked.config import VARIABLES
from image_gen.masked.schedule.base import Schedule


def resample_means(mean_tv: Tensor, steps: int) -> Tensor:
    """Raw means at another step count: [T, V] -> [steps, V], with gradient.

    Row j stands at (j + 1) / T; between rows linear, constant before the first. The last row has no action: 0, towards
    which the means after the row before it run, and which every result ends with. Where positions meet, a row is taken
    over bit for bit; `steps` = T returns the same rows. What row T-1 holds has no influence and gets no gradient.
    """
    trained = len(mean_tv)
    if trained < 1 or steps < 1:
        raise ValueError(f"a schedule has at least one step, got {trained} -> {steps}")
    ended_tv = torch.cat([mean_tv[:-1], torch.zeros_like(mean_tv[-1:])])
    place = torch.arange(1, steps + 1, device=mean_tv.device) * trained  # in whole numbers: position * steps
    below = torch.div(place, steps, rounding_mode="floor")
    part = (place % steps).to(mean_tv.dtype)[:, None] / steps
    low_tv = ended_tv[(below - 1).clamp(min=0)]  # before the first row both ends are that row
    high_tv = ended_tv[below.clamp(max=trained - 1)]
    return low_tv + part * (high_tv - low_tv)


class TableSchedule(Schedule):
    """mean = means[step], learnable [T, V] from zeros: the same for every canvas and prompt. RECONSTRUCTION.

    Used at another step count its means are resampled (`resample_means`) and act on that count's own base values.
    """

    def __init__(self, options: config.Schedule, *, steps: int) -> None:
        super().__init__(options, steps=steps)
        self.means = nn.Parameter(torch.zeros(steps, len(VARIABLES)))

    def _mean(self, *, step: int, steps: int, n: int, features_nld: Tensor | None) -> Tensor:
        means_tv = self.means if steps == self.steps else resample_means(self.means, steps)
        return means_tv[step].expand(n, -1)

    @property
    def at_base(self) -> bool:
        return not bool(self.means[:-1, self.learned_v].any())
