"""Rewards of answers that are one number, decimals allowed: exact and graded. Whole numbers of things to count have
`count` of `mmrl.rewards.counting`. Loads no torch.

Tasks: number, regression (problem types `numerical` and `regression` of Video-R1, arXiv 2503.21776). Checked with:
formula only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from mmrl.data.answers import inside_tags
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.parse import answer_text
from mmrl.rewards.registry import reward

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3}){1,4}|\d{1,15})(?:\.\d{1,15})?|[-+]?\.\d{1,15}")


def parse_number(text: str) -> float | None:
    """The text is one number ("-3.5", "1,200", " 7. "), else None."""
    text = text.strip().removesuffix(".")
    return float(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


def right_number(record: Record) -> float:
    """The record's answer as a finite number. Raises UserError."""
    answer = record.answer
    value = parse_number(inside_tags(answer)) if isinstance(answer, str) else answer
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"record {record.id!r}: answer of task {record.task!r} must be a number, got {answer!r:.60}")
    return float(value)


@reward("number", tasks=("number",), check=right_number)
def number_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    decimals: int = 2,
) -> list[float]:
    """1 when the answer is one number that equals the right one after rounding both to `decimals`, else 0."""
    values = []
    for output, record in zip(outputs, records, strict=True):
        right, said = right_number(record), parse_number(answer_text(output))
        values.append(float(said is not None and round(said, decimals) == round(right, decimals)))
    return values


@reward("regression", tasks=("regression",), check=right_number)
def regression_reward(outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """max(0, 1 - |said - right| / |right|), in [0, 1]; where right is 0, 1 for 0 and else 0. No number: 0."""
    values = []
    for output, record in zip(outputs, records, strict=True):
        right, said = right_number(record), parse_number(answer_text(output))
        if said is None or right == 0:
            values.append(float(said is not None and said == right))
        else:
            values.append(max(0.0, 1.0 - abs(said - right) / abs(right)))
    return values
