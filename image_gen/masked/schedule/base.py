"""What sampler and policy ask of a schedule policy. Axes: n rows, T steps, V = 4 variables, L positions, D features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn


class Schedule(nn.Module, ABC):
    """p_phi(u | step, canvas): independent Gaussians over raw actions, for every step but the last.

    reads_features   the mean depends on features of the token model's last layer (detached here).
    learned_v        bool [V]: variables that are learned; the others have raw action 0 and no likelihood.
    """

    reads_features: bool = False
    learned_v: Tensor

    @abstractmethod
    def mean(self, *, step: int, steps: int, n: int, features_nld: Tensor | None = None) -> Tensor:
        """[n, V] of the action before step `step` of `steps`, 0 in columns that are not learned; with gradient.

        Raises ValueError for the last step, which has no action, and where needed features are missing."""

    @abstractmethod
    def deviation(self) -> Tensor:
        """[V], now: fixed with its decay, or learned (then with gradient). Positive."""

    @abstractmethod
    def first_deviation(self) -> Tensor:
        """[V], before any update: that of the reference in the KL to the hand-made schedule."""

    @abstractmethod
    def stepped(self) -> None:
        """An update of the schedule was applied: count it (the decay of the deviation follows the count)."""

    @property
    @abstractmethod
    def at_base(self) -> bool:
        """All means are exactly 0: the mean schedule is the hand-made one."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """`schedule.safetensors` and `schedule.json` (kind, steps it was trained at, settings), in a new folder."""


def no_features(features_nld: Tensor | None) -> Tensor:
    if features_nld is None:
        raise ValueError("this schedule reads features of the token model; ask the forward for them")
    return features_nld.detach().to(torch.float32)
