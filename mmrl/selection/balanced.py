"""Prompts spread evenly over the values of one field of their metadata, e.g. GenEval's tag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmrl.core.streams import stream_seed
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from mmrl.selection.base import Selector, selector
from mmrl.selection.request import Request
from mmrl.selection.uniform import Uniform


@selector("balanced")
class Balanced(Selector):
    """In every step, refills included, the values are asked equally often, or one apart. Where that leaves a choice,
    the value asked least since the start of the run comes first, then chance (seed, step). The records of one value
    follow their own seeded order, each once before any comes again.

    by      the field of `meta`; every record must have it, as text, a number or a truth value.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        prompts: int,
        group: int,
        seed: int,
        shuffle: bool = True,
        by: str = "tag",
    ) -> None:
        super().__init__(records, prompts=prompts, group=group, seed=seed, shuffle=shuffle)
        members: dict[str, list[Record]] = {}
        for record in records:
            members.setdefault(_value(record, by, records), []).append(record)
        own = {"prompts": 1, "group": group, "shuffle": shuffle}
        self._of = {
            value: Uniform(members[value], seed=stream_seed(seed, "balanced", value), **own)  # type: ignore[arg-type]
            for value in sorted(members)
        }
        self._step, self._asked = 0, dict.fromkeys(self._of, 0)

    def plan(self, step: int) -> list[Request]:
        self._step, self._asked = step, dict.fromkeys(self._of, 0)
        return self._draw(self.prompts)

    def refill(self, n: int) -> list[Request]:
        return self._draw(n)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": {value: one.drawn for value, one in self._of.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state["drawn"]) != set(self._of):
            raise UserError("selection: the checkpoint was made with other values of the field; resume with its data")
        for value, drawn in state["drawn"].items():
            self._of[value].load_state_dict({"drawn": drawn})

    def _draw(self, n: int) -> list[Request]:
        chance = self._chance()
        requests = []
        for _ in range(n):
            value = min(self._of, key=lambda v: (self._asked[v], self._of[v].drawn, chance[v]))
            self._asked[value] += 1
            requests += self._of[value].refill(1)
        return requests

    def _chance(self) -> dict[str, int]:
        """An order of the values for this step; without shuffling the alphabet's."""
        order = list(range(len(self._of)))
        if self.shuffle:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, "values", self._step))
            order = torch.randperm(len(order), generator=generator).tolist()
        return dict(zip(self._of, order, strict=True))


def _value(record: Record, by: str, records: Sequence[Record]) -> str:
    if by not in record.meta:
        known = {key for one in records for key in one.meta}
        hint = "; the other records have it" if by in known else nearest(by, known)
        raise UserError(f"selection.options.by: record {record.id!r} has no field {by!r} in its meta{hint}")
    value = record.meta[by]
    if not isinstance(value, str | int | float):
        raise UserError(
            f"selection.options.by: the {by!r} of record {record.id!r} is a {type(value).__name__}; "
            "choose a field that holds text or a number"
        )
    return str(value)
