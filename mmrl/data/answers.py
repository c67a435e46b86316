"""What a record's `answer` may look like per task, in one place: the reader checks with it, rewards compare with it.

Loads no torch.
"""

from __future__ import annotations

import re
from typing import Any

from mmrl.data.boxtext import (
    LABEL_KEYS,
    Box,
    Detection,
    as_box,
    as_detection,
    parse_box_list,
    parse_corners,
    parse_four,
    says_nothing,
)
from mmrl.errors import UserError

_COUNT = re.compile(r"[+-]?\d{1,9}(?:\.0{1,9})?")


def inside_tags(text: str) -> str:
    """The text between the first <answer> and the next </answer>, stripped; the whole text without tags."""
    _, tag, rest = text.partition("<answer>")
    return (rest.partition("</answer>")[0] if tag else text).strip()


def box_answers(answer: Any, where: str) -> tuple[Detection, ...]:
    """Boxes of a detection answer: `[[x1, y1, x2, y2], ...]`, `[{"Position": [...], ...}, ...]`, or either as text.

    "No Objects", "None" and [] are no box. Raises UserError that starts with `where`.
    """
    if isinstance(answer, str):
        return _boxes_in_text(answer, where)
    if not isinstance(answer, (list, tuple)):
        raise UserError(f"{where}: answer of a detection must be a list of boxes, got {_short(answer)}")
    if as_box(answer) is not None:
        raise UserError(f"{where}: answer of a detection is one bare box; write a list of boxes, [{_short(answer)}]")
    found = []
    for i, item in enumerate(answer):
        box = as_box(item)
        detection = Detection(box) if box else as_detection(item)
        if detection is None:
            raise UserError(
                f"{where}: answer[{i}] is no box: {_short(item)}; write four finite numbers [x1, y1, x2, y2] "
                "or {'Position': [x1, y1, x2, y2]}"
            )
        found.append(detection)
    return tuple(found)


def _boxes_in_text(text: str, where: str) -> tuple[Detection, ...]:
    inner = inside_tags(text)
    read = parse_box_list(inner)
    if read.dropped or not (read.boxes or read.empty):
        raise UserError(
            f"{where}: answer is not a list of boxes: {_short(inner)}; write [{{'Position': [x1, y1, x2, y2]}}, ...] "
            "with finite numbers, or No Objects"
        )
    return read.boxes


def box_answer(answer: Any, where: str) -> Box:
    """The one box of a grounding: `[x1, y1, x2, y2]`, `{"Position": [...]}`, `(x1,y1),(x2,y2)`, a list of one."""
    if isinstance(answer, str):
        inner = inside_tags(answer)
        box = parse_corners(inner) or parse_four(inner)
    else:
        single = answer[0] if isinstance(answer, (list, tuple)) and len(answer) == 1 else answer
        detection = as_detection(single)
        box = detection.box if detection else as_box(single)
    if box is None:
        raise UserError(f"{where}: answer is no box: {_short(answer)}; write four finite numbers [x1, y1, x2, y2]")
    return box


def label_answers(answer: Any, where: str) -> tuple[str, ...]:
    """Accepted labels of a classification answer: a string or number, or a list of them (any one is right)."""
    items = answer if isinstance(answer, (list, tuple)) else [answer]
    if not items or any(isinstance(v, bool) or not isinstance(v, (str, int, float)) for v in items):
        raise UserError(f"{where}: answer of a classification must be a label, got {_short(answer)}")
    labels = tuple(inside_tags(v) if isinstance(v, str) else str(v) for v in items)
    if not all(label.strip(" _") for label in labels):
        raise UserError(f"{where}: answer is an empty label; write the name of the class")
    return labels


def count_answer(answer: Any, where: str) -> int:
    """The number of a counting answer: a whole number of at least 0, also as text."""
    count = parse_count(inside_tags(answer)) if isinstance(answer, str) else answer
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise UserError(f"{where}: answer of a counting must be a whole number of at least 0, got {_short(answer)}")
    return count


def parse_count(text: str) -> int | None:
    """The text is one whole number ("7", " 7.", "7.0"), else None."""
    text = text.strip().removesuffix(".")
    return int(float(text)) if _COUNT.fullmatch(text) else None


def infer_task(answer: Any) -> str:
    """The task of official data, from its solution: a list of Position records (or none) is detection, corners or one
    bare box are grounding, everything else classification."""
    if isinstance(answer, str):
        inner = inside_tags(answer)
        if says_nothing(inner) or inner == "[]" or (inner.startswith(("[", "```")) and parse_box_list(inner).boxes):
            return "detection"
        return "grounding" if parse_corners(inner) else "classification"
    if as_box(answer) is not None:
        return "grounding"
    if isinstance(answer, list) and all(as_box(v) or (isinstance(v, dict) and not _only_label(v)) for v in answer):
        return "detection"
    return "classification"


def _only_label(record: dict[str, Any]) -> bool:
    return set(record) <= set(LABEL_KEYS)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
