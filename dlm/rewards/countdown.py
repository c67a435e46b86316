"""Countdown reward of d1 (arXiv 2504.12216), after TinyZero. Loads no torch. Checked with: formula only.

Paper and released code differ about the partial reward: the paper gives it to an expression of the right numbers with a
wrong value, the code to any pair of answer tags. The default is the paper's, because the other pays for tags alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from dlm.rewards.expression import numbers_in, value
from dlm.rewards.reading import Tags, paired_answer
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.registry import reward


def countdown_answer(record: Record) -> tuple[list[int], int]:
    """(numbers, target) of a record. Raises UserError."""
    answer = record.answer if isinstance(record.answer, dict) else {}
    numbers, target = answer.get("numbers"), answer.get("target", "")
    if not isinstance(numbers, (list, tuple)) or not numbers or not all(map(_whole, [*numbers, target])):
        raise UserError(
            f"record {record.id!r}: answer of a countdown must be {{'numbers': [whole numbers], 'target': whole "
            f"number}}, got {record.answer!r:.60}"
        )
    return [int(n) for n in numbers], int(target)


def _whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def uses_all(expression: str, numbers: Sequence[int]) -> bool:
    """Every given number exactly once, and no other."""
    found = numbers_in(expression)
    return found is not None and sorted(found) == sorted(numbers)


@reward("countdown", tasks=("countdown",))
def countdown_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    partial: float = 0.1,
    partial_for: Literal["numbers", "tags"] = "numbers",
    tags: Tags = "auto",
) -> list[float]:
    """1 for an expression of all the numbers, each once, that has the target's value; `partial` for the right numbers
    with another value, or none (`partial_for: tags`, as released: for any answer); else 0.

    Values are exact fractions. Unlike the released code: no powers, no `//`, no decimal points (where 2.5 counted as
    the numbers 2 and 5).
    """
    return [_score(o, r, partial, partial_for, tags) for o, r in zip(outputs, records, strict=True)]


def _score(output: str, record: Record, partial: float, partial_for: str, tags: Tags) -> float:
    numbers, target = countdown_answer(record)
    said = paired_answer(output, record, tags)
    if said is None:
        return 0.0
    if not uses_all(said, numbers):
        return partial if partial_for == "tags" else 0.0
    return 1.0 if value(said) == target else partial
