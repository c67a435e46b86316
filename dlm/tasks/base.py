"""What every generated task shares: options, splits that cannot overlap, records from a seed. Loads no torch.

A problem belongs to one split for ever: the one that a hash of the problem itself names. So no two splits share a
problem, whatever their seeds, sizes and options. `start` is for the supervised warm start, `train` for the rewarded
updates, `eval` for held-out numbers.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dlm.tasks.layout import STYLES, d1_prompt, d1_response
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest

#: Split -> the values of (hash of a problem) mod 10 that belong to it.
SPLITS = {"eval": range(2), "start": range(2, 6), "train": range(6, 10)}
DEFAULT_N = {"start": 4000, "train": 4000, "eval": 512}
Options = dict[str, Any]
_DIGITS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Choice:
    """An option that is one of a few words; the first is the default."""

    words: tuple[str, ...]

    @property
    def default(self) -> str:
        return self.words[0]

    def read(self, value: Any, where: str) -> str:
        if value not in self.words:
            raise UserError(f"{where} must be one of {', '.join(self.words)}, got {value!r}")
        return str(value)


@dataclass(frozen=True)
class Whole:
    """An option that is a whole number from `low` to `high`; `also`: further values that are allowed."""

    default: int
    low: int
    high: int
    also: tuple[int, ...] = ()

    def read(self, value: Any, where: str) -> int:
        number = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value
        if isinstance(number, bool) or not isinstance(number, int) or not self._allows(number):
            more = "".join(f" or {v}" for v in self.also)
            raise UserError(f"{where} must be a whole number from {self.low} to {self.high}{more}, got {value!r}")
        return number

    def _allows(self, value: int) -> bool:
        return self.low <= value <= self.high or value in self.also


@dataclass(frozen=True)
class Problem:
    """One problem, before it is put into words.

    key        what the split is a hash of: equal for problems that share their answer for a trivial reason (the same
               digits in another order).
    same       equal for problems that are the same task to the model; a set holds each once.
    short      prompt in style plain.
    question   prompt in style d1, without the layout; `hint`: what stands between its answer tags there.
    answer     what rewards compare with. said: the demonstrated answer as text; worked: the steps that lead to it.
    plain      the demonstration in style plain; None = `said`.
    """

    key: str
    same: str
    short: str
    question: str
    answer: Any
    said: str
    worked: str
    plain: str | None = None
    hint: str = "..."
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A generator: `name` is the task of its records, `options` what a user may set beside style, n and seed."""

    name: str
    options: Mapping[str, Choice | Whole]
    draw: Callable[[random.Random, Options], Problem]
    check: Callable[[Options, str], None] | None = None

    def known(self) -> dict[str, Choice | Whole]:
        return {**self.options, "style": Choice(STYLES)}

    def read_options(self, given: Mapping[str, Any], where: str) -> Options:
        """All options with their values. Raises UserError that starts with `where`."""
        known = self.known()
        for key in given:
            if key not in known:
                raise UserError(f"{where}: unknown option {key!r}{nearest(key, known)}")
        out: Options = {k: o.read(given[k], f"{where}: {k}") if k in given else o.default for k, o in known.items()}
        if self.check is not None:
            self.check(out, where)
        return out


def split_of(task: str, key: str) -> str:
    """The split that a problem belongs to."""
    bucket = int.from_bytes(hashlib.blake2b(f"{task}\x1f{key}".encode(), digest_size=8).digest(), "big") % 10
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def make_records(
    task: Task, split: str, *, seed: int = 0, n: int, options: Mapping[str, Any] | None = None, where: str | None = None
) -> list[Record]:
    """n different problems of a split. The first m of n records are the m records that n = m gives.

    Raises UserError for an unknown split or option, and when the options do not allow n different problems.
    """
    where = where or f"task {task.name}"
    if split not in SPLITS:
        raise UserError(f"{where}: unknown split {split!r}{nearest(split, SPLITS)}")
    chosen = task.read_options(options or {}, where)
    n, seed = Whole(1, 1, 10_000_000).read(n, f"{where}: n"), Whole(0, 0, 999_999_999).read(seed, f"{where}: seed")
    told = ",".join(f"{k}={v}" for k, v in chosen.items())
    rng = random.Random(f"dlm tasks\x1f{task.name}\x1f{told}\x1f{seed}")
    records: list[Record] = []
    seen: set[str] = set()
    fruitless = 0
    while len(records) < n:
        problem = task.draw(rng, chosen)
        if problem.same in seen or split_of(task.name, problem.key) != split:
            fruitless += 1
            if fruitless > 20_000:
                raise UserError(
                    f"{where}: these options give about {len(records)} different problems in split {split}, {n} are "
                    "asked for; lower n, or make the problems larger"
                )
            continue
        fruitless = 0
        seen.add(problem.same)
        records.append(_record(task, problem, chosen, f"{task.name}:{split}:{told}:{seed}:{len(records)}"))
    return records


def _record(task: Task, problem: Problem, options: Options, name: str) -> Record:
    style = options["style"]
    if style == "d1":
        prompt = d1_prompt(problem.question, answer=problem.hint)
        response = d1_response(problem.worked, problem.said)
    else:
        prompt, response = problem.short, problem.said if problem.plain is None else problem.plain
    meta = {"source": "generated", "style": style, **problem.meta}
    return Record(name, task.name, prompt, answer=problem.answer, response=response, meta=meta)
