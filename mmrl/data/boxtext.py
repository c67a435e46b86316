"""Boxes written as text: what models answer and what `solution` columns hold. Loads no torch.

Two spellings are known: a list of records `[{'Position': [x1, y1, x2, y2], 'Confidence': c}, ...]` (Visual-RFT,
arXiv 2503.01785) and one box as `(x1,y1),(x2,y2)`. Nothing in here raises on any string, and the time is linear in its
length: model output is untrusted.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Box = tuple[float, float, float, float]

POSITION_KEYS = ("Position", "position", "bbox_2d", "bbox", "box")
CONFIDENCE_KEYS = ("Confidence", "confidence", "score")
LABEL_KEYS = ("label", "Label", "category")
_NOTHING = {"noobjects", "noobject", "none"}
_MAX_DEPTH = 16
_SHORT = 5000  # characters; longer answers are not remembered


@dataclass(frozen=True, slots=True)
class Detection:
    """One box; `confidence` and `label` are None where the text gives none."""

    box: Box
    confidence: float | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class BoxList:
    """`empty`: the text says that nothing is there ("No Objects", "None", "[]"). `dropped`: how many are invalid."""

    boxes: tuple[Detection, ...] = ()
    empty: bool = False
    dropped: int = 0


def says_nothing(text: str) -> bool:
    """True for "No Objects", "none", in any case, with quotes, blanks or a full stop around it."""
    return len(text) < 200 and re.sub(r"[\s'\".\[\]_-]+", "", text).lower() in _NOTHING


def as_box(value: Any) -> Box | None:
    """Four finite numbers, or None. The corners may be in any order: that is for the caller to judge."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None
    numbers = []
    for v in value:
        if type(v) not in (int, float) and (isinstance(v, bool) or not isinstance(v, (int, float))):
            return None
        try:
            number = float(v)
        except OverflowError:
            return None
        if not math.isfinite(number):
            return None
        numbers.append(number)
    return numbers[0], numbers[1], numbers[2], numbers[3]


def as_detection(value: Any) -> Detection | None:
    """A record with a valid position, or None. A confidence that is present must be a finite number."""
    if not isinstance(value, dict):
        return None
    box = as_box(_first(value, POSITION_KEYS))
    if box is None:
        return None
    confidence = _first(value, CONFIDENCE_KEYS)
    if confidence is not None:
        if isinstance(confidence, bool) or not isinstance(confidence, (int, float)):
            return None
        try:
            confidence = float(confidence)
        except OverflowError:
            return None
        if not math.isfinite(confidence):
            return None
    label = _first(value, LABEL_KEYS)
    return Detection(box, confidence, None if label is None else str(label))


def _first(record: dict[Any, Any], keys: tuple[str, ...]) -> Any:
    return next((record[k] for k in keys if k in record), None)


def parse_box_list(text: str) -> BoxList:
    """The robust reading: every valid record is kept, an invalid or cut-off one is dropped alone.

    Accepts JSON and Python literals (apostrophes inside double quotes survive), code fences, a list in a list, a
    trailing `, ...`, and a list without its end.
    """
    return _parse_short(text) if len(text) <= _SHORT else _parse(text)


def _parse(text: str) -> BoxList:
    if says_nothing(text):
        return BoxList(empty=True)
    value = _read(_without_fence(text.strip()))
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return BoxList()
    if len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if not value:
        return BoxList(empty=True)
    found = [as_detection(v) for v in value]
    kept = tuple(d for d in found if d is not None)
    return BoxList(kept, dropped=len(found) - len(kept))


_parse_short = lru_cache(maxsize=4096)(_parse)  # several rewards read the same answer


def _without_fence(text: str) -> str:
    """The inside of a fenced code block, else the text."""
    if not text.startswith("```"):
        return text
    body = text.partition("\n")[2]
    return body.removesuffix("```").rstrip()


def _read(text: str) -> Any:
    """JSON by the standard library when it is JSON (or would be with the other quotes), else the lenient reader."""
    for candidate in (text, text.replace("'", '"') if '"' not in text else ""):
        if candidate:
            try:
                return json.loads(candidate)
            except (ValueError, RecursionError):
                pass
    return _read_leniently(text)


_TOKEN = re.compile(
    r"""\s*+(?:
      (?P<open>[\[({]) | (?P<close>[\])}]) | (?P<skip>[,:]|\.\.\.) |
      (?P<string>"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+') |
      (?P<number>[-+]?+(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?+\d++)?+) |
      (?P<word>\w++)
    )""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"true": True, "false": False, "True": True, "False": False, "null": None, "None": None}


def _read_leniently(text: str) -> Any:
    """A JSON or Python literal read up to where it stops making sense; containers not closed by then are left out,
    except the outermost list."""
    stack: list[tuple[str, list[Any]]] = []
    at = 0
    while token := _TOKEN.match(text, at):
        at = token.end()
        kind = token.lastgroup
        if kind == "open":
            if len(stack) == _MAX_DEPTH:
                break
            stack.append((token["open"], []))
            continue
        if not stack:
            return None  # prose or a lone number before any list
        if kind == "close":
            opener, items = stack.pop()
            done = _dict(items) if opener == "{" else items
            if not stack:
                return done
            stack[-1][1].append(done)
        elif kind != "skip":
            stack[-1][1].append(_scalar(kind, token[0].strip()))
    return stack[0][1] if stack and stack[0][0] != "{" else None


def _dict(items: list[Any]) -> dict[Any, Any]:
    pairs = zip(items[::2], items[1::2], strict=False)
    return {k: v for k, v in pairs if isinstance(k, str)}


def _scalar(kind: str | None, text: str) -> Any:
    if kind == "number":
        return float(text)  # too many digits give infinity, which the record check drops
    if kind == "string":
        return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    return _WORDS.get(text, text)


_NUMBER = r"\s*+(-?+\d{1,9}(?:\.\d{1,9})?+)\s*+"
_CORNERS = re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*+,?+\s*+\({_NUMBER},{_NUMBER}\)")
_FOUR = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


def parse_corners(text: str) -> Box | None:
    """The first `(x1,y1),(x2,y2)` in the text; two boxes in one answer never mix."""
    return _as_floats(_CORNERS.search(text))


def parse_four(text: str) -> Box | None:
    """The first `[x1, y1, x2, y2]` in the text."""
    return _as_floats(_FOUR.search(text))


def _as_floats(match: re.Match[str] | None) -> Box | None:
    if match is None:
        return None
    x1, y1, x2, y2 = (float(g) for g in match.groups())
    return x1, y1, x2, y2
