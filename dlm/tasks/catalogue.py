"""Generated sets by name, and the level that a constant answer reaches. Loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dlm.tasks import arithmetic, countdown, sorting, sudoku4, sums
from dlm.tasks.base import DEFAULT_N, SPLITS, Task, make_records
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest

#: Name of a set -> its generator. Records have the task `Task.name`.
SETS: dict[str, Task] = {
    "sort": sorting.TASK,
    "arithmetic": arithmetic.TASK,
    "sums": sums.TASK,
    "countdown": countdown.TASK,
    "sudoku4": sudoku4.TASK,
    "sudoku4_open": sudoku4.OPEN,
}
#: Every character of prompts and demonstrations in style plain: what the tokenizer of a small model must know.
CHARACTERS = "0123456789+-*/=()>:;, adefkmorstu"
#: Tasks whose answer is plain text, compared as such.
_TEXT = ("sorting", "arithmetic", "sums", "gsm8k", "math")


def builtin(name: str) -> list[Record]:
    """Records by name: `SET:SPLIT[?key=value&...]`, e.g. `sort:train`, `sums:eval?steps=4&n=512`.

    SPLIT is start, train or eval. Keys: n, seed (0), style (plain or d1) and the options of the set. Raises UserError
    for anything else, with the nearest name.
    """
    kind, colon, rest = name.partition(":")
    split, question, query = rest.partition("?")
    if kind not in SETS or not colon:
        hint = nearest(kind, SETS) if colon else f"; write SET:SPLIT, with SET one of {', '.join(SETS)}"
        raise UserError(f"data: unknown embedded set {name!r}{hint}")
    task = SETS[kind]
    where = f"data: {name!r}"
    if split not in SPLITS:
        raise UserError(f"{where}: unknown split {split!r}{nearest(split, SPLITS)}")
    options = _query(query, where, [*task.known(), "n", "seed"]) if question else {}
    n, seed = options.pop("n", DEFAULT_N[split]), options.pop("seed", 0)
    return make_records(task, split, seed=seed, n=n, options=options, where=where)


def _query(query: str, where: str, known: Sequence[str]) -> dict[str, Any]:
    if not query:
        raise UserError(f"{where}: options are missing after '?'; add n=, seed= or another, or drop it")
    options: dict[str, Any] = {}
    for item in query.split("&"):
        key, equals, value = item.partition("=")
        if key not in known:
            raise UserError(f"{where}: unknown option {key!r}{nearest(key, known)}")
        if not equals or key in options:
            raise UserError(f"{where}: write each option once, as {key}=value")
        options[key] = value
    return options


def chance(records: Sequence[Record]) -> dict[str, float]:
    """`{"accuracy": share that the best constant answer solves}`; empty when a record has a task not known here.

    A Countdown expression solves all problems of the same numbers and target; a Sudoku grid all puzzles made from it.
    """
    if records and all(record.task == "sudoku4_open" for record in records):
        return {"accuracy": _best_grid(records) / len(records)}
    keys = [_constant(record) for record in records]
    if not keys or None in keys:
        return {}
    return {"accuracy": Counter(keys).most_common(1)[0][1] / len(keys)}


def _constant(record: Record) -> tuple[Any, ...] | None:
    """Equal for two records exactly when one answer solves both."""
    answer = record.answer
    if record.task in _TEXT and isinstance(answer, (str, int)):
        return ("text", str(answer))
    if record.task == "countdown" and isinstance(answer, dict):
        return ("countdown", tuple(sorted(answer["numbers"])), answer["target"])
    if record.task == "sudoku4" and isinstance(answer, dict):
        return ("text", answer["solution"])
    return None


def _best_grid(records: Sequence[Record]) -> int:
    """The most puzzles that one full grid solves."""
    solved = Counter(grid for record in records for grid in sudoku4.solutions(record.answer["puzzle"]))
    return solved.most_common(1)[0][1]
