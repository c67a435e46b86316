"""Referring-expression reward of VLM-R1 (arXiv 2504.07615): IoU of the first box. Loads no torch.

Tasks: grounding. Checked with: formula only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmrl.data.answers import box_answer
from mmrl.data.boxtext import Box, parse_corners, parse_four
from mmrl.data.frames import Frame, Size, convert_box
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.boxes import iou
from mmrl.rewards.parse import answer_text
from mmrl.rewards.registry import reward


def iou_beyond_a_pixel(a: Box, b: Box) -> float:
    """The peer's IoU: the plain one, but an overlap of one pixel or less in width or height is none. Pixels only."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return iou(a, b) if width > 1 and height > 1 else 0.0


def _size(name: str, record: Record, row: dict[str, Any]) -> Size | None:
    value = row.get(name, record.meta.get(name))
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise UserError(f"record {record.id!r}: {name} must be [width, height], got {value!r}")
    return float(value[0]), float(value[1])


@reward("rec_iou", tasks=("grounding",), cacheable=False)
def rec_iou_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    predicted_frame: Frame | None = None,
    metric: Literal["iou", "iou_pixel", "iou50"] = "iou",
) -> list[float]:
    """IoU of the first `[x1, y1, x2, y2]` (else `(x1,y1),(x2,y2)`) in the answer, in [0, 1]; 0 without a box.

    predicted_frame   the frame the model answers in, when it is not the record's: the box is converted, with
                      "original_size" and "model_size" ([width, height]) from the row's info or the record's meta.
    metric            iou_pixel: as released (pixel frames); iou50: 1 when IoU > 0.5, the first release.
    """
    values = []
    for output, record, row in zip(outputs, records, info, strict=True):
        where = f"record {record.id!r}"
        truth = box_answer(record.answer, where)
        said = answer_text(output)
        box = parse_four(said) or parse_corners(said)
        if box is None:
            values.append(0.0)
            continue
        if predicted_frame is not None and predicted_frame != record.frame:
            original, model = _size("original_size", record, row), _size("model_size", record, row)
            box = convert_box(box, predicted_frame, record.frame, original_size=original, model_size=model, where=where)
        if metric == "iou_pixel":
            values.append(iou_beyond_a_pixel(box, truth))
        else:
            overlap = iou(box, truth)
            values.append(float(overlap > 0.5) if metric == "iou50" else overlap)
    return values
