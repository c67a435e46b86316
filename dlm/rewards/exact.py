"""Rewards of tasks with one right text: sorting, arithmetic, running sums. Loads no torch.

Checked with: formula only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dlm.rewards.reading import final_answer
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.registry import reward

#: Tasks whose answers hold no words: blanks between their characters mean nothing.
_WORDLESS = ("sorting", "arithmetic", "sums")
_STEP_END = re.compile(r"[;\n]")


def said_answer(text: str, record: Record) -> str:
    """The final answer of a completion as `exact` compares it: between the tags, else the whole text. Of a running sum
    without tags, what stands behind its last sign = or ;."""
    said = final_answer(text)
    if record.task == "sums" and "<answer>" not in text:
        said = re.split(r"[=;\n]", said)[-1]
    return normal(said, record.task)


def normal(text: str, task: str) -> str:
    """Without blanks for tasks without words; else every run of blanks is one."""
    return ("" if task in _WORDLESS else " ").join(text.split())


def right_answer(record: Record) -> str:
    """The record's answer as text. Raises UserError when it is neither text nor a number, or empty."""
    answer = record.answer
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)) or not str(answer).strip():
        raise UserError(
            f"record {record.id!r}: answer of task {record.task!r} must be a text or a number, got {answer!r:.60}"
        )
    return normal(str(answer), record.task)


@reward("exact")
def exact_reward(outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """1 when the final answer equals the record's, else 0. For records of any task whose answer is a text."""
    return [float(said_answer(o, r) == right_answer(r)) for o, r in zip(outputs, records, strict=True)]


@reward("characters", tasks=("sorting",))
def characters_reward(outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """Share of characters in the right place: equal ones / the longer length, in [0, 1]."""
    return [_share(said_answer(o, r), right_answer(r)) for o, r in zip(outputs, records, strict=True)]


@reward("sum_steps", tasks=("sums",))
def sum_steps_reward(outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """Share of right steps, in [0, 1]: those that stand in the right place as `meta["steps"]` has them, over the larger
    number of steps (so that further steps cost something). Steps end at a semicolon or a new line."""
    return [_share(_said_steps(o), _right_steps(r)) for o, r in zip(outputs, records, strict=True)]


def _share(said: Sequence[str], right: Sequence[str]) -> float:
    same = sum(a == b for a, b in zip(said, right, strict=False))
    return same / max(len(said), len(right))


def _said_steps(text: str) -> list[str]:
    """The steps of a completion: in its reasoning where that is marked, else in all of it before an answer tag."""
    text = text.partition("<answer>")[0].rpartition("<reasoning>")[2].partition("</reasoning>")[0]
    return [step for part in _STEP_END.split(text) if (step := "".join(part.split()))]


def _right_steps(record: Record) -> list[str]:
    steps = record.meta.get("steps")
    if not isinstance(steps, (list, tuple)) or not steps or not all(isinstance(s, str) for s in steps):
        raise UserError(
            f"record {record.id!r}: sum_steps needs the right steps as a list of texts under meta.steps, "
            f"got {steps!r:.60}"
        )
    return ["".join(step.split()) for step in steps]
