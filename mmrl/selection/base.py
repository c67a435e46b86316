"""The contract of a selector, and the table of known ones. A selector is stateful and is part of the checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.core.table import Table
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from mmrl.selection.request import Request


@dataclass(frozen=True)
class Seen:
    """What the rewards said of a step's rows. Axis: N rows.

    reward_n     weighted sum of the components, NaN where none applies.
    prompt_n     int64, the number of the row's request.
    components   raw values by name, NaN where one does not apply.
    correct_n    bool: the row's answer is truly right; None unless a reward component is marked with `success`.
    outputs      what the rows said, one a row.
    """

    reward_n: Tensor
    prompt_n: Tensor
    components: Mapping[str, Tensor] = field(default_factory=dict)
    correct_n: Tensor | None = None
    outputs: Sequence[Any] | None = None


class Selector:
    """Chooses prompts and how many samples each gets; sees what came of them.

    plan(step)                          requests of a step.
    refill(n)                           further requests of the same step, for groups that were dropped.
    coming(n)                           what a plan of n requests would be now, where that is known; changes nothing.
    check(options, columns, correct)    class method: refuses options that do not fit the run's rewards.
    input_options(options)              class method: what its requests set of the policy's INPUT_OPTIONS, each with the
                                        advice for policies without it.
    keep_groups(requests, seen)         bool [N] after rewards: rows that go on. All rows of a group alike.
    keep_rows(table)                    bool [N] after advantages: rows that are trained on.
    observe(requests, reward_n, prompt_n)       after rewards: posteriors, value trackers.
    after_update(score)                 after the step; `score()` gives current log-probs [N,T], no gradient.
    state_dict, load_state_dict         plain values.
    keys                                names its requests add to the keys of the rollouts.
    refill_rounds                       how often groups that `keep_groups` left out are replaced in one step.
    """

    keys: frozenset[str] = frozenset()
    refill_rounds: int = 0

    def __init__(self, records: Sequence[Record], *, prompts: int, group: int, seed: int, shuffle: bool = True) -> None:
        self.records, self.prompts, self.group = records, prompts, group
        self.seed, self.shuffle = seed, shuffle

    @classmethod
    def check(cls, options: Mapping[str, Any], *, columns: Sequence[str], correct: bool) -> None:
        """Called before weights load. columns: names of the reward components; correct: one of them is marked with
        `success`. Raises UserError."""

    @classmethod
    def input_options(cls, options: Mapping[str, Any]) -> Mapping[str, str]:
        return {}

    @property
    def filters(self) -> bool:
        """`keep_groups` may leave groups out."""
        return type(self).keep_groups is not Selector.keep_groups

    def plan(self, step: int) -> list[Request]:
        raise NotImplementedError

    def refill(self, n: int) -> list[Request]:
        raise NotImplementedError

    def coming(self, n: int) -> list[Request]:
        """May be shorter, and wrong: families only prepare for them."""
        return []

    def keep_groups(self, requests: Sequence[Request], seen: Seen) -> Tensor:
        return torch.ones(len(seen.reward_n), dtype=torch.bool)

    def keep_rows(self, table: Table) -> Tensor:
        return torch.ones(len(table["reward_n"]), dtype=torch.bool)

    def observe(self, requests: Sequence[Request], reward_n: Tensor, prompt_n: Tensor) -> None:
        """Nothing to learn, unless a subclass says so."""

    def after_update(self, score: Callable[[], Tensor]) -> None:
        """Nothing to do, unless a subclass says so."""

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


_SELECTORS: dict[str, type[Selector]] = {}


def selector(name: str) -> Callable[[type[Selector]], type[Selector]]:
    """Decorator: register a selector class. Its own options are further keyword-only parameters of its constructor."""

    def register(cls: type[Selector]) -> type[Selector]:
        if name in _SELECTORS and _SELECTORS[name].__module__ != cls.__module__:
            raise UserError(f"selector {name!r} is registered already by {_SELECTORS[name].__module__}")
        _SELECTORS[name] = cls
        return cls

    return register


def find(name: str, options: dict[str, Any]) -> type[Selector]:
    """The class, its options checked against its constructor. Raises UserError with the nearest name."""
    import mmrl.selection.balanced
    import mmrl.selection.difficulty
    import mmrl.selection.filtered
    import mmrl.selection.uniform  # noqa: F401  (they register themselves)

    if name not in _SELECTORS:
        raise UserError(f"selection.name: unknown selector {name!r}{nearest(name, _SELECTORS)}")
    known = set(inspect.signature(_SELECTORS[name]).parameters) - {"records", "prompts", "group", "seed", "shuffle"}
    for option in options:
        if option not in known:
            raise UserError(f"selection.options: {name!r} has no option {option!r}{nearest(option, known)}")
    return _SELECTORS[name]
