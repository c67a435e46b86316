"""The plain selector: every record once per epoch, in a seeded order. Also the contract that other selectors follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmrl.core.streams import stream_seed
from mmrl.data.records import Record
from mmrl.selection.request import Request


class Selector:
    """Stateful choice of prompts. The base class is the uniform selector; others override what they change.

    plan(step)            requests of a step.
    refill(n)             further requests of the same step, when groups were dropped.
    observe(keys, reward) after rewards (posteriors, value trackers).
    state_dict            everything needed to continue: here the number of records drawn so far.
    """

    def __init__(self, records: Sequence[Record], *, prompts: int, group: int, seed: int, shuffle: bool = True) -> None:
        self.records, self.prompts, self.group = records, prompts, group
        self.seed, self.shuffle = seed, shuffle
        self.drawn = 0

    def plan(self, step: int) -> list[Request]:
        return self._draw(self.prompts)

    def refill(self, n: int) -> list[Request]:
        return self._draw(n)

    def observe(self, requests: Sequence[Request], reward_n: torch.Tensor, prompt_n: torch.Tensor) -> None:
        """The uniform selector learns nothing from rewards."""

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = int(state["drawn"])

    def _draw(self, n: int) -> list[Request]:
        picked = [self._record(self.drawn + i) for i in range(n)]
        # the position in the data names the samples, so the same record drawn twice in a step has two streams
        out = [
            Request(record=r, n=self.group, first_sample=(self.drawn + i) // len(self.records) * self.group)
            for i, r in enumerate(picked)
        ]
        self.drawn += n
        return out

    def _record(self, position: int) -> Record:
        epoch, at = divmod(position, len(self.records))
        return self.records[self._order(epoch)[at] if self.shuffle else at]

    def _order(self, epoch: int) -> list[int]:
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
            self._epoch, self._perm = epoch, torch.randperm(len(self.records), generator=generator).tolist()
        return self._perm
