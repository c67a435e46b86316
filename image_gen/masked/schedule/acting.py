"""The schedule as the sampler meets it: raw actions drawn or taken at their mean, and the values they stand for.

Axes: n rows, T steps, V = 4 variables, L positions, D features. No gradient anywhere here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from image_gen.masked.config import VARIABLES
from image_gen.masked.schedule import actions
from image_gen.masked.schedule.base import Schedule
from image_gen.masked.schedule.targets import GUIDANCE, mixing_guidance


class Acting:
    """One batch of decodings under a schedule; an `Actor` of `image_gen.masked.sampler`.

    base_tv        [T, V] hand-made values (`targets.base_values`, `targets.adanat_values`); its length is the step
                   count, its device where actions and values lie. Taken in float32.
    generators     one a row, on any device: actions are drawn. None: the mean of each action is taken.
    use_base       leave the schedule out: raw actions 0, base values.
    guidance_base  w_base of `actions.values`.

    Smoothing and the convention of the guidance (base `adanat`: 1 + w) are those stored with the schedule. Steps must
    come in order; step 0 begins anew. `reads_features` is false where no mean has to be computed.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        base_tv: Tensor,
        generators: Sequence[torch.Generator] | None = None,
        use_base: bool = False,
        guidance_base: float = 1.0,
    ) -> None:
        if base_tv.ndim != 2 or len(base_tv) < 1 or base_tv.shape[1] != len(VARIABLES):
            raise ValueError(f"base values are [steps, {len(VARIABLES)}]; got {list(base_tv.shape)}")
        self._schedule, self._generators, self._guidance_base = schedule, generators, guidance_base
        self._base_tv = base_tv.detach().to(torch.float32)
        self._mixing = schedule.options.base == "adanat"
        self._still = use_base or (generators is None and schedule.at_base)
        self._guided = self._used(self._base_tv)[:, GUIDANCE].ne(1).tolist()
        self._moves_guidance = "guidance" in schedule.options.learn and not self._still
        self._offset_nv: Tensor | None = None
        self._logps: list[Tensor] = []
        self._next = 0
        self.reads_features = schedule.reads_features and not self._still and self.steps > 1

    @property
    def steps(self) -> int:
        return len(self._base_tv)

    def both(self, step: int) -> bool:
        """Guidance may differ from 1 at this step, so that the unconditional half is needed."""
        return bool(self._guided[step]) or (self._moves_guidance and step < self.steps - 1)

    @torch.no_grad()
    def act(self, step: int, *, n: int, features_nld: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(raw actions [n, V], values [n, V]), float32. At the last step, and wherever nothing is learned or drawn:
        raw 0 and the base values bit for bit. Raises ValueError for a step out of order."""
        if step not in (0, self._next) or step >= self.steps:
            raise ValueError(f"step {step} of {self.steps} follows step {self._next - 1}: steps must come in order")
        self._next = step + 1
        self._logps = self._logps if step else []
        if self._still or step == self.steps - 1:
            return self._base_tv.new_zeros(n, len(VARIABLES)), self._used(self._base_tv[step]).repeat(n, 1)
        raw_nv = self._raw(step, n, features_nld)
        before = None if step == 0 else self._offset_nv
        self._offset_nv = actions.smoothed(raw_nv=raw_nv, previous_nv=before, smooth=self._schedule.options.smooth)
        value_nv = actions.values(
            offset_nv=self._offset_nv, base_v=self._base_tv[step], guidance_base=self._guidance_base
        )
        return raw_nv, self._used(value_nv)

    def _raw(self, step: int, n: int, features_nld: Tensor | None) -> Tensor:
        """What is stored is what is mapped and scored: float32 from here on."""
        mean_nv = self._schedule.mean(step=step, steps=self.steps, n=n, features_nld=features_nld)
        mean_nv = mean_nv.to(self._base_tv)
        if self._generators is None:
            return mean_nv
        if len(self._generators) != n:
            raise ValueError(f"{len(self._generators)} generators for {n} rows; give one a row")
        noise_nv = torch.stack(
            [torch.randn(len(VARIABLES), generator=g, device=g.device).to(mean_nv) for g in self._generators]
        )
        deviation_v, learned_v = self._schedule.deviation().to(mean_nv), self._schedule.learned_v.to(mean_nv.device)
        drawn_nv = torch.where(learned_v, mean_nv + deviation_v * noise_nv, torch.zeros_like(mean_nv))
        self._logps.append(
            actions.log_prob(raw_nv=drawn_nv, mean_nv=mean_nv, deviation_v=deviation_v, learned_v=learned_v)
        )
        return drawn_nv

    @property
    def logp_nt(self) -> Tensor | None:
        """Log-probabilities of the actions drawn since step 0, [n, T-1] after all steps; None where none was drawn."""
        return torch.stack(self._logps, 1) if self._logps else None

    def _used(self, value_nv: Tensor) -> Tensor:
        return mixing_guidance(value_nv) if self._mixing else value_nv


def mean_values(schedule: Schedule, base_tv: Tensor, *, guidance_base: float = 1.0) -> Tensor:
    """The values that a table's means stand for, step by step, float32 [T, V]: what a report draws.

    Raises ValueError for a schedule that reads features: its values depend on the canvas; average those of samples."""
    acting = Acting(schedule, base_tv=base_tv, guidance_base=guidance_base)
    if acting.reads_features:
        raise ValueError("the values of this schedule depend on the canvas; average those of samples")
    return torch.cat([acting.act(step, n=1)[1] for step in range(acting.steps)])
