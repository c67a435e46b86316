"""What people see of a completion: its boxes in pixels of the picture they were said of."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl.data.answers import box_answer, box_answers
from mmrl.data.boxtext import Box, parse_corners, parse_four
from mmrl.data.frames import convert_box
from mmrl.data.records import Record
from mmrl.rewards.parse import answer_text, boxes


def pixel_boxes(
    output: str, record: Record, *, original_size: tuple[int, int], model_size: tuple[int, int]
) -> list[list[float]]:
    """Boxes [x1, y1, x2, y2] of the answer, from the record's frame into pixels of the first picture as it was given.

    Read as the rewards read them: a list of boxes, else the first four numbers in brackets, else two corners. Sizes
    are (width, height).
    """
    return _to_pixels(said_boxes(output), record, original_size, model_size)


def said_boxes(output: str) -> list[Box]:
    """Boxes of the answer in the numbers it uses."""
    found = [d.box for d in boxes(output).boxes]
    if not found:
        said = answer_text(output)
        single = parse_four(said) or parse_corners(said)
        found = [single] if single is not None else []
    return found


def true_boxes(record: Record, *, original_size: tuple[int, int], model_size: tuple[int, int]) -> list[list[float]]:
    """The boxes of the record's own answer, likewise in pixels; none for tasks without boxes or without an answer."""
    where = f"record {record.id!r}"
    if record.answer is None or record.task not in ("detection", "grounding"):
        return []
    if record.task == "grounding":
        return _to_pixels([box_answer(record.answer, where)], record, original_size, model_size)
    found = [d.box for d in box_answers(record.answer, where)]
    return _to_pixels(found, record, original_size, model_size)


def _to_pixels(
    found: Sequence[Box], record: Record, original_size: tuple[int, int], model_size: tuple[int, int]
) -> list[list[float]]:
    return [
        list(convert_box(b, record.frame, "pixel_original", original_size=original_size, model_size=model_size))
        for b in found
    ]
