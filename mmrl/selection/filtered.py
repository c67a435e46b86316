"""Uniform prompts, of which only groups that have something to teach go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from mmrl.core.groups import Groups
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from mmrl.selection.base import Seen, selector
from mmrl.selection.request import Request
from mmrl.selection.uniform import Uniform

WHERE = "selection.options"
#: Shares are compared with this much room: 0.2 of 5 rows is one row.
ROOM = 1e-9


@selector("filtered")
class Filtered(Uniform):
    """A group goes on when it passes every test that is asked for; the others are replaced a few times, then left out.

    spread          {component: least}: largest minus smallest raw value in the group is at least `least`; null: off.
    need_correct    at least one row of the group is correct.
    share_correct   [low, high]: the share of correct rows lies between them, both included.
    refill_rounds   how often further prompts take the place of groups left out in one step; 0: never.

    Rows without any reward are not looked at; a group of them is left out. Correct is what the reward component marked
    with `success` says. LightningRL: spread {tpf: 0.01} and need_correct; TraceRL: share_correct [0.2, 0.8].
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        prompts: int,
        group: int,
        seed: int,
        shuffle: bool = True,
        spread: Mapping[str, float | None] | None = None,
        need_correct: bool = False,
        share_correct: Sequence[float] | None = None,
        refill_rounds: int = 0,
    ) -> None:
        super().__init__(records, prompts=prompts, group=group, seed=seed, shuffle=shuffle)
        _check_values(spread, need_correct, share_correct, refill_rounds)
        self.spread = {name: float(least) for name, least in (spread or {}).items() if least is not None}
        self.need_correct, self.share_correct = need_correct, share_correct
        self.refill_rounds = refill_rounds

    @classmethod
    def check(cls, options: Mapping[str, Any], *, columns: Sequence[str], correct: bool) -> None:
        spread, share = options.get("spread"), options.get("share_correct")
        _check_values(spread, options.get("need_correct", False), share, options.get("refill_rounds", 0))
        for name, least in (spread or {}).items():
            if least is not None and name not in columns:
                raise UserError(f"{WHERE}.spread: no reward component {name!r} in this run{nearest(name, columns)}")
        asked = "need_correct" if options.get("need_correct") else "share_correct" if share is not None else None
        if asked and not correct:
            raise UserError(
                f"{WHERE}.{asked}: no reward component says which answers are right; give one of rewards.components a "
                "`success`, the value from which on it counts"
            )

    def keep_groups(self, requests: Sequence[Request], seen: Seen) -> Tensor:
        groups = Groups(seen.prompt_n, torch.isfinite(seen.reward_n))
        keep_n = groups.count() > 0
        for name, least in self.spread.items():
            value_n = seen.components[name]
            known = Groups(seen.prompt_n, torch.isfinite(value_n))
            value_n = torch.nan_to_num(value_n)
            keep_n &= known.max(value_n) - known.min(value_n) >= least  # -inf where no row has a value
        if seen.correct_n is None:
            return keep_n
        right_n = groups.sum(seen.correct_n.double())
        if self.need_correct:
            keep_n &= right_n > 0
        if self.share_correct is not None:
            low, high = self.share_correct
            share_n = right_n / groups.count().clamp(min=1)
            keep_n &= (share_n >= low - ROOM) & (share_n <= high + ROOM)
        return keep_n


def _check_values(spread: Any, need_correct: Any, share: Any, rounds: Any) -> None:
    def number(value: Any) -> bool:
        return isinstance(value, Real) and not isinstance(value, bool)

    if not isinstance(spread, Mapping | None):
        raise UserError(f"{WHERE}.spread: expected component: least value, got {spread!r}")
    for name, least in (spread or {}).items():
        if least is not None and not (number(least) and least >= 0):
            raise UserError(f"{WHERE}.spread.{name}: must be a number of at least 0, or null, got {least!r}")
    if not isinstance(need_correct, bool):
        raise UserError(f"{WHERE}.need_correct: must be true or false, got {need_correct!r}")
    if share is not None:
        pair = share if isinstance(share, list | tuple) and len(share) == 2 and all(map(number, share)) else None
        if pair is None or not 0 <= pair[0] <= pair[1] <= 1:
            raise UserError(f"{WHERE}.share_correct: must be [low, high] with 0 <= low <= high <= 1, got {share!r}")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or not 0 <= rounds <= 1000:
        raise UserError(f"{WHERE}.refill_rounds: must be a whole number from 0 to 1000, got {rounds!r}")
