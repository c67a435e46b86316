"""The plain selector: every record once per epoch, in a seeded order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmrl.core.streams import stream_seed
from mmrl.data.records import Record
from mmrl.selection.base import Selector, selector
from mmrl.selection.request import Request


@selector("uniform")
class Uniform(Selector):
    """Its whole state is the number of records drawn so far."""

    def __init__(self, records: Sequence[Record], *, prompts: int, group: int, seed: int, shuffle: bool = True) -> None:
        super().__init__(records, prompts=prompts, group=group, seed=seed, shuffle=shuffle)
        self.drawn = 0
        self._epoch, self._order = -1, list(range(len(records)))

    def plan(self, step: int) -> list[Request]:
        return self._draw(self.prompts)

    def refill(self, n: int) -> list[Request]:
        return self._draw(n)

    def coming(self, n: int) -> list[Request]:
        return [self._request(position) for position in range(self.drawn, self.drawn + n)]

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = int(state["drawn"])

    def _draw(self, n: int) -> list[Request]:
        requests = [self._request(position) for position in range(self.drawn, self.drawn + n)]
        self.drawn += n
        return requests

    def _request(self, position: int) -> Request:
        epoch, at = divmod(position, len(self.records))
        if self.shuffle and epoch != self._epoch:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.records), generator=generator).tolist()
        # a record drawn twice in one step (small data, refills) continues the count of its samples
        return Request(record=self.records[self._order[at]], n=self.group, first_sample=epoch * self.group)
