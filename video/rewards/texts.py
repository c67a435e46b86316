"""Tokens of a text, their edit distance and longest common subsequence. Loads no torch.

Both distances hold a whole row of the usual table in the bits of one integer, so a pair of long texts costs one pass
over one of them. That is 15 lines; the libraries for it (jiwer over rapidfuzz) would add two compiled dependencies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from mmrl.data.answers import inside_tags
from mmrl.data.records import Record
from mmrl.errors import UserError

Unit = Literal["word", "character"]
_WORD = re.compile(r"[^\W_]+")


def right_texts(record: Record) -> list[str]:
    """The record's accepted texts: one, or a list of them. Raises UserError when there is none."""
    items = record.answer if isinstance(record.answer, (list, tuple)) else [record.answer]
    texts = [inside_tags(item) for item in items if isinstance(item, str)]
    if not items or len(texts) < len(items) or not all(texts):
        raise UserError(f"record {record.id!r}: answer must be a text or a list of them, got {record.answer!r:.60}")
    return texts


def words_as_written(text: str, unit: Unit) -> list[str]:
    """Split at blanks, nothing else changed; `character`: each character that is no blank."""
    return text.split() if unit == "word" else list("".join(text.split()))


def words_folded(text: str, unit: Unit) -> list[str]:
    """Lower-case runs of letters and digits; `character`: their characters."""
    words = _WORD.findall(text.lower())
    return words if unit == "word" else list("".join(words))


def _places(items: Sequence[Any]) -> dict[Any, int]:
    """Item -> the positions where it stands, as bits."""
    masks: dict[Any, int] = {}
    for i, item in enumerate(items):
        masks[item] = masks.get(item, 0) | 1 << i
    return masks


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Least number of substitutions, insertions and deletions from a to b (Myers 1999, in Hyyro's form)."""
    if not a or not b:
        return len(a) + len(b)
    masks, full, last = _places(a), (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, distance = full, 0, len(a)  # where the column rises and falls by 1 from entry to entry
    for item in b:
        same = masks.get(item, 0)
        diagonal = (((same & up) + up) ^ up) | same | down
        rises, falls = (down | ~(diagonal | up)) & full, up & diagonal
        distance += bool(rises & last) - bool(falls & last)
        rises, falls = (rises << 1 | 1) & full, falls << 1 & full
        same |= down
        up, down = (falls | ~(same | rises)) & full, rises & same
    return distance


def common_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the longest common subsequence (Hyyro 2004)."""
    masks, full = _places(a), (1 << len(a)) - 1
    free = full
    for item in b:
        hit = free & masks.get(item, 0)
        free = ((free + hit) | (free - hit)) & full
    return len(a) - free.bit_count()
