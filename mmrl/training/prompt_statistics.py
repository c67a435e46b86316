"""Running statistics of the rewards of each prompt, over steps of training: DDPO's tracker (arXiv 2305.13301).

Axis: N rollouts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmrl.errors import UserError


class PromptStatistics:
    """The last `buffer` rewards of every prompt. State of the run: it belongs into checkpoints.

    buffer      rewards kept per prompt; older ones leave. ddpo-pytorch: 16.
    min_count   with fewer rewards of a prompt than this the step's whole batch stands in. 16 there as well.
    """

    def __init__(self, buffer: int = 32, min_count: int = 16) -> None:
        if not 1 <= min_count <= buffer:
            raise UserError(f"prompt statistics: min_count must be between 1 and buffer {buffer}, got {min_count}")
        self.buffer, self.min_count = buffer, min_count
        self._rewards: dict[str, deque[float]] = {}

    def update(self, ids: Sequence[str], reward_n: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a step's rewards [N] of the prompts `ids`, then (mean_n, std_n) for each row: float64 [N] each, on
        the device of the rewards, deviation of the population (ddof 0).

        The new rewards count in the statistics they are compared with. Rewards that are not finite are left out; where
        a batch has none at all, mean and deviation are 0. Give it the rewards of all ranks in one order, and every rank
        holds the same statistics.
        """
        if reward_n.dim() != 1 or len(ids) != len(reward_n):
            raise ValueError(f"one id a reward: {len(ids)} ids, rewards {list(reward_n.shape)}")
        value_n = reward_n.detach().to("cpu", torch.float64)
        rows = [(one, value) for one, value in zip(ids, value_n.tolist()) if math.isfinite(value)]
        for one, value in rows:
            self._rewards.setdefault(one, deque(maxlen=self.buffer)).append(value)
        batch = _mean_and_std([value for _, value in rows])
        known = {one: self._of(one, batch) for one in set(ids)}
        mean_n, std_n = (torch.tensor([known[one][at] for one in ids], dtype=torch.float64) for at in (0, 1))
        return mean_n.to(reward_n.device), std_n.to(reward_n.device)

    def _of(self, one: str, batch: tuple[float, float]) -> tuple[float, float]:
        rewards = self._rewards.get(one, ())
        return batch if len(rewards) < self.min_count else _mean_and_std(list(rewards))

    def count(self, one: str) -> int:
        """Rewards of a prompt that are held now."""
        return len(self._rewards.get(one, ()))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and names: JSON keeps them exactly."""
        rewards = {one: list(values) for one, values in self._rewards.items()}
        return {"buffer": self.buffer, "min_count": self.min_count, "rewards": rewards}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`. Raises UserError when the state was kept with another buffer or min_count."""
        for name in ("buffer", "min_count"):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"prompt statistics: the checkpoint has {name} {state[name]}, this run {getattr(self, name)}; "
                    "resume with the same"
                )
        self._rewards = {
            str(one): deque((float(v) for v in values), maxlen=self.buffer) for one, values in state["rewards"].items()
        }


def _mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 0.0
    table = torch.tensor(values, dtype=torch.float64)
    return float(table.mean()), float(table.std(correction=0))
