"""Correctness of GSM8K and MATH answers, as d1 rewards it (arXiv 2504.12216): 2 for a right answer. Loads no torch.

Checked with: formula only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from dlm.rewards import latex
from dlm.rewards.reading import boxed, final_answer
from dlm.rewards.verifier import LONGEST, same_value
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.registry import reward

#: text: as released. verify: equal as text, or equal in value by math-verify.
Match = Literal["text", "verify"]


def right_answer(record: Record) -> str:
    """The answer, out of its box or from behind ####. Raises UserError when there is none."""
    if isinstance(record.answer, bool) or not isinstance(record.answer, (str, int, float)):
        raise UserError(f"record {record.id!r}: answer of task {record.task!r} must be a text or a number")
    text = str(record.answer)
    text = text.rpartition("####")[2].strip()
    text = (boxed(text) if "\\boxed" in text else text) or ""
    if not text:
        raise UserError(
            f"record {record.id!r}: the answer is empty or its \\boxed{{}} is cut off: {record.answer!r:.60}"
        )
    return text


def said_number(output: str, record: Record) -> str:
    """Between the tags of d1; of style plain, from behind the last ####."""
    if record.meta.get("style") == "plain" and "<answer>" not in output:
        return output.rpartition("####")[2].strip()
    return final_answer(output)


def said_formula(output: str) -> str | None:
    """In the last box; without one the final answer, if it is short enough to be one."""
    inside = boxed(output)
    if inside is None and "\\boxed" not in output:
        inside = final_answer(output)
    return inside if inside is not None and len(inside) <= LONGEST else None


@reward("gsm8k", tasks=("gsm8k",))
def gsm8k_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    match: Match = "text",
    value: float = 2.0,
) -> list[float]:
    """`value` when the final answer is right, else 0.

    match text   the text between the tags equals the answer, as released ("18.0" and "$18" are wrong for 18).
    match verify   or has its value.
    """
    return [value * gsm8k_right(o, r, match) for o, r in zip(outputs, records, strict=True)]


def gsm8k_right(output: str, record: Record, match: Match) -> bool:
    said, right = said_number(output, record), right_answer(record)
    return said == right or (match == "verify" and same_value(right, said))


@reward("math", tasks=("math",))
def math_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    match: Match = "verify",
    value: float = 2.0,
) -> list[float]:
    """`value` when the boxed answer is right, else 0. Without a box the final answer is read (up to 400 characters).

    match text   equal in one spelling (`dlm.rewards.latex`), as released.
    match verify   or has the same value (arXiv 2103.03874's rule misses 0.25 for \\frac14).
    """
    return [value * math_right(o, r, match) for o, r in zip(outputs, records, strict=True)]


def math_right(output: str, record: Record, match: Match) -> bool:
    said, right = said_formula(output), right_answer(record)
    if said is None:
        return False
    return latex.same(said, right) or (match == "verify" and same_value(right, said))
