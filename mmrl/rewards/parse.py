"""From a completion to its answer: the official reading of Visual-RFT and a robust one. Loads no torch.

Never raises on any string; linear time (searches by `str.find`, no regular expression that can rescan).
Source: arXiv 2503.01785 and its released code.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from mmrl.data.boxtext import BoxList, as_detection, parse_box_list

Parser = Literal["robust", "official"]
_OPEN, _CLOSE = "<answer>", "</answer>"
_THINK_TO_ANSWER = re.compile(r"</think>\s*+<answer>")


def answer_text(text: str) -> str:
    """The answer, stripped: between the first <answer> and the next </answer> (newlines allowed); to the end when the
    tag is never closed; the whole text when there is no tag."""
    start = text.find(_OPEN)
    if start < 0:
        return text.strip()
    start += len(_OPEN)
    end = text.find(_CLOSE, start)
    return (text[start:] if end < 0 else text[start:end]).strip()


def official_answer_text(text: str) -> str:
    """As released: <answer>...</answer> on ONE line; the whole text when there is none."""
    start = text.find(_OPEN)
    end = -1
    while start >= 0:
        start += len(_OPEN)
        if end < start:
            end = text.find(_CLOSE, start)
        if end < 0:
            break
        newline = text.find("\n", start, end)
        if newline < 0:
            return text[start:end].strip()
        start = text.find(_OPEN, newline)
    return text.strip()


def official_boxes(text: str) -> BoxList:
    """The released parser, step by step (a-g of its description); one bad record empties the whole list.

    Departures: non-finite numbers drop the list (JSON lets NaN through), and `empty` is set for an explicit "[]" or
    "No Objects", which the released reward does not know.
    """
    inner = f"{_OPEN}{official_answer_text(text)}{_CLOSE}"
    inner = inner.replace("[[", "[").replace("]]", "]").replace("\n", "")
    inner = inner[len(_OPEN) : inner.find(_CLOSE)].strip()
    if inner == "[]" or inner.lower() == "no objects":
        return BoxList(empty=True)
    if not inner.endswith("]"):
        cut = inner.rfind("},")
        if cut >= 0:
            inner = inner[:cut] + "}]"
    try:
        value = json.loads(inner.replace("'", '"'))
    except (ValueError, RecursionError):
        return BoxList()
    if not isinstance(value, list):
        return BoxList()
    found = [as_detection(v) for v in value]
    kept = tuple(d for d in found if d is not None and d.confidence is not None)
    return BoxList(kept) if len(kept) == len(found) else BoxList(dropped=len(found))


def boxes(text: str, *, parser: Parser = "robust") -> BoxList:
    """The boxes a completion answers with."""
    return parse_box_list(answer_text(text)) if parser == "robust" else official_boxes(text)


def well_formed(text: str) -> bool:
    """The whole text is <think>...</think>, optional blanks, <answer>...</answer>; dots match newlines.

    Same verdict as the regular expression `<think>.*?</think>\\s*<answer>.*?</answer>`, full match, in linear time.
    """
    if not text.startswith("<think>") or not text.endswith(_CLOSE):
        return False
    return _THINK_TO_ANSWER.search(text, len("<think>"), len(text) - len(_CLOSE)) is not None


def answer_only(text: str) -> bool:
    """The whole text, blanks around it aside, is <answer>...</answer>."""
    text = text.strip()
    return text.startswith(_OPEN) and text.endswith(_CLOSE) and len(text) >= len(_OPEN) + len(_CLOSE)
