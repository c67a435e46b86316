"""Segments of time: read from text, compared as sets and one by one. Never raises on any string; loads no torch.

A segment is (start, end) in seconds, start < end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from mmrl.errors import UserError

Segment = tuple[float, float]
#: Further segments of an answer are counted and not looked at.
MOST = 64

_TIME = r"(?:\d{1,2}:){0,2}\d{1,7}(?:\.\d{1,9})?"
_UNIT = r"(?:s|secs?\.?|seconds?)?"
#: Between the two times: a mark, a word, or the name of the second one as in {"start": 2, "end": 5}, "and ends at 5".
_MARK = r"->|[-\u2013\u2014~\u2192,]|to\b|and\b|until\b|through\b"
_END = r"(?:,|and\b)?\s{0,9}[\"']?end(?:s|_time)?[\"']?\s{0,9}(?:[:=]|at\b)?"
_PAIR = re.compile(
    rf"(?<![\d.:-])({_TIME})\s{{0,9}}{_UNIT}\s{{0,9}}(?:{_END}|{_MARK})\s{{0,9}}({_TIME})(?![\d:])", re.IGNORECASE
)


def read_segments(text: str) -> tuple[list[Segment], int]:
    """(valid segments in order, how many pairs of times the text has).

    Pairs are `12.5 - 19.3`, `12.5s to 19.3s`, `[12.5, 19.3]`, `0:12 to 1:19.5`, `from 3 until 5`,
    `{"start": 3, "end": 5}`. A pair that does not rise is no segment.
    """
    valid: list[Segment] = []
    pairs = 0
    for match in _PAIR.finditer(text):
        pairs += 1
        start, end = _seconds(match[1]), _seconds(match[2])
        if start < end and len(valid) < MOST:
            valid.append((start, end))
    return valid, pairs


def _seconds(text: str) -> float:
    value = 0.0
    for part in text.split(":"):
        value = value * 60 + float(part)
    return value


def segments_answer(answer: Any, where: str) -> list[Segment]:
    """A record's answer: [start, end] or [[start, end], ...] in seconds. Raises UserError that starts with `where`."""
    items = [answer] if isinstance(answer, (list, tuple)) and len(answer) == 2 and _number(answer[0]) else answer
    if not isinstance(items, (list, tuple)) or not items:
        raise UserError(f"{where}: answer must be segments [[start, end], ...] in seconds, got {answer!r:.60}")
    found = []
    for item in items:
        if not isinstance(item, (list, tuple)) or len(item) != 2 or not all(map(_number, item)):
            raise UserError(f"{where}: a segment must be [start, end] in seconds, got {item!r:.60}")
        if not 0 <= item[0] < item[1]:
            raise UserError(f"{where}: a segment must have 0 <= start < end, got {list(item)!r:.60}")
        found.append((float(item[0]), float(item[1])))
    return found


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def tiou(a: Segment, b: Segment) -> float:
    """|a and b| / |a or b|, in [0, 1]; a gap between them is in neither."""
    inside = min(a[1], b[1]) - max(a[0], b[0])
    return inside / ((a[1] - a[0]) + (b[1] - b[0]) - inside) if inside > 0 else 0.0


def set_tiou(said: Sequence[Segment], right: Sequence[Segment]) -> float:
    """The same of two unions of segments: seconds in both over seconds in either. 0 when either is empty."""
    a, b = merged(said), merged(right)
    inside = sum(max(0.0, min(x[1], y[1]) - max(x[0], y[0])) for x in a for y in b)
    total = sum(end - start for start, end in (*a, *b)) - inside
    return inside / total if inside > 0 else 0.0


def merged(segments: Sequence[Segment]) -> list[Segment]:
    """The union as disjoint segments in order."""
    out: list[Segment] = []
    for start, end in sorted(segments):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def matched_tiou(said: Sequence[Segment], right: Sequence[Segment], *, n_said: int) -> float:
    """Sum of tIoU of the BEST one-to-one matching over max(n_said, number of right ones).

    Best, not greedy: the assignment with the largest sum. n_said: how many segments the answer names, invalid ones too.
    """
    table = [[tiou(a, b) for b in right] for a in said]
    return best_sum(table) / max(n_said, len(right))


def best_sum(table: Sequence[Sequence[float]]) -> float:
    """Largest sum of entries with no two in one row or column (the assignment problem, by shortest augmenting paths;
    O(n^2 m) for n <= m)."""
    if not table or not table[0]:
        return 0.0
    rows: Sequence[Sequence[float]] = table if len(table) <= len(table[0]) else list(zip(*table, strict=True))
    n, m = len(rows), len(rows[0])
    row_price, column_price = [0.0] * (n + 1), [0.0] * (m + 1)
    row_of = [0] * (m + 1)  # column -> row, from 1; column 0 is where a new row enters
    for i in range(1, n + 1):
        row_of[0], at = i, 0
        least, before, done = [math.inf] * (m + 1), [0] * (m + 1), [False] * (m + 1)
        while row_of[at]:
            done[at] = True
            row, step, following = row_of[at], math.inf, 0
            for j in range(1, m + 1):
                if done[j]:
                    continue
                cost = -rows[row - 1][j - 1] - row_price[row] - column_price[j]
                if cost < least[j]:
                    least[j], before[j] = cost, at
                if least[j] < step:
                    step, following = least[j], j
            for j in range(m + 1):
                if done[j]:
                    row_price[row_of[j]] += step
                    column_price[j] -= step
                else:
                    least[j] -= step
            at = following
        while at:
            row_of[at] = row_of[before[at]]
            at = before[at]
    return sum(rows[row_of[j] - 1][j - 1] for j in range(1, m + 1) if row_of[j])
