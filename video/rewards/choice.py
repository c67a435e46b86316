"""Rewards of questions with lettered options, one or several of them right (TW-GRPO, arXiv 2505.24718). Loads no torch.

G: set of right letters; P: set of letters in the answer. Both are what stands between commas once blanks are deleted,
with no case folding, so an empty answer is the set of one empty text, which no G holds.

Tasks: choice. Checked with: formula only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from mmrl.data.answers import inside_tags
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.parse import answer_text
from mmrl.rewards.registry import reward


def letters_of(text: str) -> frozenset[str]:
    """ "A, C" -> {"A", "C"}; "" -> {""}."""
    return frozenset("".join(text.split()).split(","))


def right_letters(record: Record) -> frozenset[str]:
    """The record's answer: "B,C", the same in answer tags, or ["B", "C"]. Raises UserError for anything else."""
    answer = record.answer
    items = answer if isinstance(answer, (list, tuple)) else [answer]
    if not items or not all(isinstance(item, str) for item in items):
        raise _wrong(record)
    letters = letters_of(",".join(inside_tags(item) for item in items))
    if any(not re.fullmatch("[A-Z]", letter) for letter in letters):
        raise _wrong(record)
    return letters


def check_letters(record: Record) -> None:
    """Raises UserError for an answer that is no letters, or names more options than the record's `options` are."""
    options = record.meta.get("options")
    said = right_letters(record)
    if isinstance(options, (list, tuple)) and options and max(said) > chr(ord("A") + len(options) - 1):
        raise UserError(
            f"record {record.id!r}: answer {','.join(sorted(said))} names an option that is not there: "
            f"meta.options has {len(options)}"
        )


def _wrong(record: Record) -> UserError:
    return UserError(
        f"record {record.id!r}: answer of a choice must be letters such as 'B' or 'B,C', got {record.answer!r:.60}"
    )


def soft_score(said: frozenset[str], right: frozenset[str], *, form: Literal["official", "iou"] = "official") -> float:
    """`official`: |P|/|G| when P is a subset of G, else 0. `iou`: |P and G| / |P or G|. Both in [0, 1]."""
    if form == "iou":
        return len(said & right) / len(said | right)
    return len(said) / len(right) if said <= right else 0.0


@reward("choice", tasks=("choice",), check=check_letters)
def choice_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    form: Literal["official", "iou"] = "official",
) -> list[float]:
    """The soft reward, in [0, 1]: partial credit for some of the right letters.

    `official` (default): |P|/|G| when P is a subset of G, else 0: one wrong letter costs everything. `iou`:
    |P and G| / |P or G|, which a text about the method describes; a superset keeps a part. With one right letter
    `official` is `choice_exact`.
    """
    return [
        soft_score(letters_of(answer_text(output)), right_letters(record), form=form)
        for output, record in zip(outputs, records, strict=True)
    ]


@reward("choice_exact", tasks=("choice",), check=check_letters)
def choice_exact_reward(
    outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]
) -> list[float]:
    """1 when the answer's letters are the right ones, all of them and no other; else 0."""
    return [
        float(letters_of(answer_text(output)) == right_letters(record))
        for output, record in zip(outputs, records, strict=True)
    ]
