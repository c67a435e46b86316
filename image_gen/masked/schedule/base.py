"""What sampler and policy ask of a schedule policy. Axes: n rows, T steps, V = 4 variables, L positions, D features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from image_gen.masked import config
from image_gen.masked.config import VARIABLES
from image_gen.masked.schedule.deviation import Deviation


class Schedule(nn.Module, ABC):
    """p_phi(u | step, canvas): independent Gaussians over raw actions, for every step but the last. RECONSTRUCTION.

    options          kind, learned variables, smoothing, base and deviation: stored and loaded with it.
    steps            the step count it was made for.
    reads_features   the mean depends on features of the token model's last layer (detached here).
    learned_v        bool [V]: variables that are learned; the others have raw action 0 and no likelihood.
    """

    reads_features: bool = False
    learned_v: Tensor

    def __init__(self, options: config.Schedule, *, steps: int) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"a schedule has at least one step, got {steps}")
        self.options, self.steps = options.model_copy(deep=True), steps
        learned_v = torch.tensor([name in options.learn for name in VARIABLES])
        self.register_buffer("learned_v", learned_v, persistent=False)
        self.spread = Deviation(options.deviation)

    def mean(self, *, step: int, steps: int, n: int, features_nld: Tensor | None = None) -> Tensor:
        """[n, V] of the action before step `step` of `steps`, 0 in columns that are not learned; with gradient.

        Detached: features. Raises ValueError for the last step, which has no action, and where needed features are
        missing."""
        if not 0 <= step < steps - 1:
            raise ValueError(f"step {step} of {steps} has no action: there is one before every step but the last")
        mean_nv = self._mean(step=step, steps=steps, n=n, features_nld=features_nld)
        return torch.where(self.learned_v, mean_nv, torch.zeros_like(mean_nv))

    @abstractmethod
    def _mean(self, *, step: int, steps: int, n: int, features_nld: Tensor | None) -> Tensor:
        """[n, V], columns that are not learned may hold anything finite."""

    def deviation(self) -> Tensor:
        """[V], now: fixed with its decay, or learned (then with gradient). Positive."""
        now: Tensor = self.spread()
        return now

    @property
    def trained(self) -> bool:
        """It was updated, or moved from the hand-made schedule."""
        return bool(self.spread.count) or not self.at_base

    @property
    def learns_deviation(self) -> bool:
        """The deviation is a parameter: old, current and reference likelihoods each have their own. A fixed one is that
        of the rollout, whatever its decay does meanwhile."""
        return self.spread.log_v is not None

    def first_deviation(self) -> Tensor:
        """[V], before any update: that of the reference in the KL to the hand-made schedule."""
        return self.spread.first_v

    def stepped(self) -> None:
        """An update of the schedule was applied: count it (the decay of the deviation follows the count)."""
        self.spread.stepped()

    @property
    @abstractmethod
    def at_base(self) -> bool:
        """All means are exactly 0: the mean schedule is the hand-made one. Synchronises a GPU."""

    def shape_note(self) -> dict[str, Any]:
        """What `schedule.json` needs beyond options and steps to build it again."""
        return {}

    def save(self, folder: Path) -> None:
        """`schedule.safetensors` and `schedule.json` (kind, steps it was trained at, settings), in a new folder."""
        from image_gen.masked.schedule import storage  # it knows the kinds, which are built on this module

        storage.save(self, folder)


def needed_features(features_nld: Tensor | None) -> Tensor:
    """Features of the token model without their graph: the schedule's gradient never reaches the tokens' network."""
    if features_nld is None:
        raise ValueError("this schedule reads features of the token model; ask the forward for them")
    return features_nld.detach()
