"""Notices a reward component that says the same of everything, step after step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class ConstantWatch:
    """Counts, per component, the steps in a row in which every row it applied to had one and the same value.

    Such a component teaches nothing. It may be solved (every answer has the format); often the data are of another
    task, the boxes in another coordinate frame, or the answer format is never met. Told once per component and value.
    """

    def __init__(self, names: Sequence[str], *, patience: int = 20) -> None:
        self.names, self.patience = tuple(names), patience
        self._steps = [0] * len(self.names)
        self._told: list[list[float]] = [[] for _ in self.names]  # values already spoken of
        self._value = [0.0] * len(self.names)  # read only while the count is positive

    def update(self, reward_nk: Tensor) -> list[str]:
        """After each training step. Returns a line per component that just reached `patience` constant steps."""
        lines = []
        for k, name in enumerate(self.names):
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
            if self._steps[k] >= self.patience and low not in self._told[k]:
                self._told[k].append(low)
                lines.append(
                    f"reward {name!r} was {low:g} for every row of the last {self.patience} steps: it teaches nothing "
                    "now; unless it is solved, check task, coordinate frame, answer format and the reward's options"
                )
        return lines

    def state_dict(self) -> dict[str, Any]:
        columns = {"steps": list(self._steps), "value": list(self._value), "told": [list(t) for t in self._told]}
        return {"names": list(self.names), **columns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Components that are new start at 0."""
        columns = zip(state["steps"], state["value"], state["told"], strict=True)
        saved = dict(zip(state["names"], columns, strict=True))
        for k, name in enumerate(self.names):
            self._steps[k], self._value[k], self._told[k] = saved.get(name, (0, 0.0, []))
