"""What `mmrl check-reward MODULE:FUNCTION` does: run a reward on difficult outputs, report what breaks the contract.

Loads no torch by itself.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.data.answers import inside_tags
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.plugins import import_function
from mmrl.rewards.calling import Fault, Row, score_rows
from mmrl.rewards.registry import RewardDef, bind_options, option_defaults, registered

SLOW_MS = 100.0  # per row; more holds up training

#: name -> completion: what models really write, and what breaks parsers.
OUTPUTS = {
    "good boxes": "<think>a bus</think><answer>[{'Position': [10, 20, 110, 220], 'Confidence': 0.9}]</answer>",
    "good corners": "<think>left</think><answer>(10,20),(110,220)</answer>",
    "a label": "<think>wings</think><answer>A380</answer>",
    "a number": "<think>one two</think><answer>2</answer>",
    "nothing there": "<think>empty</think><answer>No Objects</answer>",
    "empty text": "",
    "blanks": " \n\t ",
    "no tags": "I see a bus.",
    "cut off": "<think>two</think><answer>[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}, {'Posi",
    "not a number": "<think></think><answer>[{'Position': [NaN, 0, Infinity, 1e999], 'Confidence': NaN}]</answer>",
    "swapped corners": "<think></think><answer>[{'Position': [90, 90, 10, 10], 'Confidence': 7}]</answer>",
    "unicode": "<think>é ü 猫 \U0001f600 \u202e \x00</think><answer>猫</answer>",
    "half a surrogate": "<answer>\ud800</answer>",
    "deep nesting": "<answer>" + "[" * 3000 + "</answer>",
    "many tags": "<think>" * 500 + "<answer>" * 500,
    "very long": "<think>" + "so then " * 20_000 + "</think><answer>A380</answer>",
}
#: The name of one more output for each record with an answer: that answer.
RIGHT = "the record's answer"

RECORDS = {
    "detection": Record("check-detection", "detection", "Find the bus.", answer=[[10, 20, 110, 220]]),
    "classification": Record("check-classification", "classification", "Which aircraft?", answer="A380"),
    "grounding": Record("check-grounding", "grounding", "The left bus.", answer=[10, 20, 110, 220]),
    "counting": Record("check-counting", "counting", "How many?", answer=2),
}


@dataclass(frozen=True)
class Checked:
    """`problems` break the contract; `notes` are worth knowing. `lines` is both, for people."""

    name: str
    problems: list[str]
    notes: list[str]

    @property
    def lines(self) -> list[str]:
        verdict = f"{len(self.problems)} problems" if self.problems else "keeps the contract"
        return [f"reward {self.name!r}: {verdict}", *self.problems, *self.notes]


def check_reward(
    target: str, *, options: Mapping[str, Any] | None = None, records: Sequence[Record] | None = None
) -> Checked:
    """Check the function named `module:function`. `records`: the user's own, instead of one per known task.

    Raises UserError when it cannot be imported or called with these options at all, and for a record whose answer it
    cannot compare with.
    """
    function = import_function(target)
    one = _definition(target, function)
    bound = bind_options(one, options or {})
    if records is None:
        records = [r for task, r in RECORDS.items() if one.applies(task)]
        if not records:
            raise UserError(f"{target}: it is for the tasks {', '.join(one.tasks)}; give a data file with such records")
    if one.check is not None:
        for record in records:
            if one.applies(record.task):
                one.check(record)
    return Checked(one.name, *_check(one, bound, records))


def _definition(target: str, function: Callable[..., Any]) -> RewardDef:
    """As registered; a function without the decorator is checked as a rowwise reward of every task."""
    for one in registered().values():
        if one.function is function:
            return one
    option_defaults(function, target)
    return RewardDef(target, function)


def _check(one: RewardDef, options: Mapping[str, Any], records: Sequence[Record]) -> tuple[list[str], list[str]]:
    answered = [r for r in records if r.answer is not None]
    names = [name for name in OUTPUTS for _ in records] + [RIGHT] * len(answered)
    outputs = [OUTPUTS[name] for name in OUTPUTS for _ in records] + [_right(r) for r in answered]
    rows = [r for _ in OUTPUTS for r in records] + answered
    info = [
        {"length": len(text.split()), "finished": name != "cut off", "sample": i}
        for i, (name, text) in enumerate(zip(names, outputs, strict=True))
    ]
    kept = copy.deepcopy((outputs, rows, info))
    start = time.perf_counter()
    first = score_rows(one, options, outputs, rows, info)
    milliseconds = 1000 * (time.perf_counter() - start) / len(outputs)
    problems = _faults(first, names, rows)
    if (outputs, rows, info) != kept:
        problems.append("it changes its inputs; work on copies")
    problems += _repeatable(one, options, (outputs, rows, info), first)
    if not _takes_empty(one, options):
        problems.append("it fails on an empty batch; return []")
    return problems, _notes(one, first, milliseconds)


def _right(record: Record) -> str:
    """The record's own answer as a model may write it: text as it is, anything else as JSON."""
    answer = record.answer
    text = inside_tags(answer) if isinstance(answer, str) else json.dumps(answer, default=str)
    return f"<think>as told</think><answer>{text}</answer>"


def _faults(found: Sequence[Row], names: Sequence[str], rows: Sequence[Record]) -> list[str]:
    """One line per kind of output that fails."""
    lines: dict[str, str] = {}
    for row, name, record in zip(found, names, rows, strict=True):
        if isinstance(row, Fault):
            lines.setdefault(name, f"on {name} (task {record.task}): {row.message}")
    return list(lines.values())


def _repeatable(one: RewardDef, options: Mapping[str, Any], batch: tuple[Any, ...], first: list[Row]) -> list[str]:
    if any(isinstance(row, Fault) for row in first):
        return []  # comparisons would only repeat the faults
    again = score_rows(one, options, *batch)
    if not _same(first, again):
        return ["the same call gives other values the second time; take randomness and state out of it"]
    if one.rowwise:
        backwards = score_rows(one, options, *(part[::-1] for part in batch))[::-1]
        if not _same(first, backwards):
            return ["a row's value depends on the other rows of the batch; register it with rowwise=False"]
    return []


def _takes_empty(one: RewardDef, options: Mapping[str, Any]) -> bool:
    """A step may have no row for a reward."""
    try:
        value = one.function([], [], [], **options)
        columns = list(value.values()) if isinstance(value, Mapping) else [value]
        return not any(len(column) for column in columns)
    except (Exception, SystemExit):  # whatever it raises, the answer is no
        return False


def _same(a: Sequence[Row], b: Sequence[Row]) -> bool:
    def numbers(rows: Sequence[Row]) -> list[Any]:
        return [None if isinstance(r, Fault) else [None if math.isnan(v) else v for v in r] for r in rows]

    return numbers(a) == numbers(b)


def _notes(one: RewardDef, found: Sequence[Row], milliseconds: float) -> list[str]:
    notes = []
    values = [v for row in found if not isinstance(row, Fault) for v in row if not math.isnan(v)]
    if values:
        notes.append(f"values from {min(values):g} to {max(values):g}, {milliseconds:.2f} ms a row")
        if min(values) == max(values):
            notes.append("all values are equal: a reward that never differs teaches nothing")
    else:
        notes.append("no value at all: it never applies to these records")
    if milliseconds > SLOW_MS:
        notes.append(f"slow: more than {SLOW_MS:g} ms a row; set rewards.workers and rewards.timeout_s")
    if one.function.__module__ == "__main__":
        notes.append("defined in the main script: worker processes cannot import it")
    return notes
