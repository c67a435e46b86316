"""Is a completion right? One yes or no for every task of this package, whatever rewards a run has. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable

from dlm.rewards.countdown import countdown_reward
from dlm.rewards.exact import right_answer, said_answer
from dlm.rewards.mathematics import gsm8k_right, math_right
from dlm.rewards.sudoku import sudoku_solved_reward
from mmrl.data.records import Record

_RULES: dict[str, Callable[[str, Record], bool]] = {
    "countdown": lambda output, record: countdown_reward([output], [record], [{}], partial=0.0)[0] == 1.0,
    "sudoku4": lambda output, record: sudoku_solved_reward([output], [record], [{}])[0] == 1.0,
    "sudoku4_open": lambda output, record: sudoku_solved_reward([output], [record], [{}])[0] == 1.0,
    "gsm8k": lambda output, record: gsm8k_right(output, record, "verify"),
    "math": lambda output, record: math_right(output, record, "verify"),
}


def is_correct(output: str, record: Record) -> bool:
    """Right by the strictest rule of the task: solved, not nearly; equal in value for GSM8K and MATH; the exact text
    for every other task. Raises UserError for an answer that does not fit its task."""
    rule = _RULES.get(record.task)
    return rule(output, record) if rule else said_answer(output, record) == right_answer(record)
