"""Notices a reward component that says the same of everything, step after step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class ConstantWatch:
    """Counts, per component, the steps in a row in which every row it applied to had one and the same value.

    Such a component teaches nothing. It may be solved (every answer has the format); often the data are of another
    task, the boxes in another coordinate frame, or the answer format is never met.
    """

    def __init__(self, names: Sequence[str], *, patience: int = 20) -> None:
        self.names, self.patience = tuple(names), patience
        self._steps = [0] * len(self.names)
        self._value = [0.0] * len(self.names)  # read only while the count is positive

    def update(self, reward_nk: Tensor) -> None:
        """After each training step; a step without any row of a component changes nothing for it."""
        for k in range(len(self.names)):
            column = reward_nk[:, k]
            values = column[~column.isnan()]
            if values.numel() == 0:
                continue
            low, high = values.min().item(), values.max().item()
            if high - low > 1e-8:
                self._steps[k] = 0
            elif self._steps[k] and abs(low - self._value[k]) <= 1e-8:
                self._steps[k] += 1
            else:
                self._steps[k] = 1
            self._value[k] = low

    def constant(self) -> dict[str, float]:
        """Components that have been constant for `patience` steps or more, with their value."""
        return {
            name: value
            for name, steps, value in zip(self.names, self._steps, self._value, strict=True)
            if steps >= self.patience
        }

    def state_dict(self) -> dict[str, Any]:
        return {"names": list(self.names), "steps": list(self._steps), "value": list(self._value)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Components that are new start at 0."""
        saved = dict(zip(state["names"], zip(state["steps"], state["value"], strict=True), strict=True))
        for k, name in enumerate(self.names):
            self._steps[k], self._value[k] = saved.get(name, (0, 0.0))
