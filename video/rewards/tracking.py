"""Tracking reward: mean IoU of one object's boxes over the annotated frames. Loads no torch.

Tasks: tracking. Checked with: formula only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.data.boxtext import Box, as_box
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.boxes import iou
from mmrl.rewards.parse import answer_text
from mmrl.rewards.registry import reward

_N = r"\s{0,9}(-?\d{1,9}(?:\.\d{1,9})?)\s{0,9}"
_BOX = rf"\[{_N},{_N},{_N},{_N}\]"
#: `"3": [x1, y1, x2, y2]`, `{"frame": 3, "bbox_2d": [...]}` (or time), or a bare box.
_ITEM = re.compile(
    rf"(?:[\"'](?:frame|time)[\"']\s{{0,9}}:\s{{0,9}}|(?<![\d.]))[\"']?(\d{{1,7}}(?:\.\d{{1,6}})?)[\"']?\s{{0,9}}"
    rf"(?::|,\s{{0,9}}[\"']\w{{1,20}}[\"']\s{{0,9}}:)\s{{0,9}}{_BOX}|{_BOX}"
)


def read_track(text: str, frames: Sequence[float]) -> dict[float, Box]:
    """Frame (or time) -> box. When no box names its frame, the k-th box belongs to the k-th of `frames`; when some do,
    the others are left out. A frame that is named twice keeps its first box. Never raises."""
    named: dict[float, Box] = {}
    bare: list[Box] = []
    for match in _ITEM.finditer(text):
        numbers = [float(g) for g in match.groups() if g is not None]
        box = (numbers[-4], numbers[-3], numbers[-2], numbers[-1])
        if match[1] is None:
            bare.append(box)
        else:
            named.setdefault(numbers[0], box)
    return named or dict(zip(frames, bare, strict=False))


def track_answer(answer: Any, where: str) -> dict[float, Box]:
    """A record's answer: {"0": [x1, y1, x2, y2], "8": ...}, or a list of boxes of frames 0, 1, ... with null where
    nothing is annotated. Raises UserError that starts with `where`."""
    if isinstance(answer, (list, tuple)):
        answer = {i: box for i, box in enumerate(answer) if box is not None}
    if not isinstance(answer, Mapping) or not answer:
        raise UserError(f"{where}: answer of a tracking must be {{frame: [x1, y1, x2, y2], ...}}, got {answer!r:.60}")
    track: dict[float, Box] = {}
    for key, value in answer.items():
        box, frame = as_box(value), _frame(key)
        if box is None or box[2] < box[0] or box[3] < box[1]:
            raise UserError(f"{where}: frame {key!r}: no box [x1, y1, x2, y2] with x1 <= x2, y1 <= y2: {value!r:.60}")
        if frame is None or frame in track:
            raise UserError(f"{where}: frames must be different numbers of at least 0, got {key!r:.60}")
        track[frame] = box
    return dict(sorted(track.items()))


def _frame(key: Any) -> float | None:
    try:
        value = float(key)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value >= 0 else None


def right_track(record: Record) -> dict[float, Box]:
    """Frame (or time) -> box of the record's answer. Raises UserError."""
    return track_answer(record.answer, f"record {record.id!r}")


@reward("tracking_iou", tasks=("tracking",), check=right_track)
def tracking_iou_reward(
    outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]
) -> list[float]:
    """Mean of the IoU of said and true box over the annotated frames, in [0, 1].

    A frame without a box counts 0; boxes of frames that are not annotated are not looked at. Both must be in the
    record's frame of coordinates. The answer may be `{"0": [x1, y1, x2, y2], ...}`, `[{"frame": 0, "bbox_2d": [...]},
    ...]`, or boxes alone in the order of the annotated frames.
    """
    values = []
    for output, record in zip(outputs, records, strict=True):
        right = right_track(record)
        said = read_track(answer_text(output), list(right))
        values.append(sum(iou(said[frame], box) for frame, box in right.items() if frame in said) / len(right))
    return values
