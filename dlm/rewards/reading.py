"""From a completion to its answer. Never raises on any string; linear time; loads no torch.

Two readings are published with d1 (arXiv 2504.12216), and differ where tags stand twice:
    <answer>1<answer>2</answer>      final_answer: "2" (from the last opening tag)      last_pair: "1<answer>2"
"""

from __future__ import annotations

import re
from typing import Literal

from mmrl.data.records import Record

#: Where an answer may stand. auto: by the record: style plain = the whole completion when there are no tags.
Tags = Literal["auto", "required", "optional"]
_OPEN, _CLOSE = "<answer>", "</answer>"
_BRACE = re.compile("[{}]")


def final_answer(text: str) -> str:
    """From the last <answer> to the next </answer> or the end, stripped; the text up to the first </answer> when no tag
    opens. Rewards for GSM8K read so."""
    return text.rpartition(_OPEN)[2].partition(_CLOSE)[0].strip()


def last_pair(text: str) -> str | None:
    """Inside the last <answer>...</answer> pair, read from the left without overlap, stripped; None without a pair.
    Rewards for Countdown and Sudoku read so."""
    found, at = None, 0
    while (start := text.find(_OPEN, at)) >= 0:
        start += len(_OPEN)
        end = text.find(_CLOSE, start)
        if end < 0:
            break
        found, at = text[start:end].strip(), end + len(_CLOSE)
    return found


def paired_answer(text: str, record: Record, tags: Tags) -> str | None:
    """`last_pair`; without one, the whole text where tags are not asked for."""
    pair = last_pair(text)
    if pair is not None or tags == "required" or (tags == "auto" and record.meta.get("style") != "plain"):
        return pair
    return text.strip()


def boxed(text: str) -> str | None:
    """Inside the last \\boxed{...} (\\fbox{...} where there is none) with its braces in balance, or behind
    `\\boxed ` up to a dollar sign; None when there is no box or it is cut off."""
    mark = "\\boxed" if "\\boxed" in text else "\\fbox"
    _, found, rest = text.rpartition(mark)
    inner = rest.lstrip(" ")
    if not found or not inner.startswith("{"):
        return rest.partition("$")[0].strip() or None if found and rest.startswith(" ") else None
    depth = 0
    for brace in _BRACE.finditer(inner):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return inner[1 : brace.start()].strip()
    return None
