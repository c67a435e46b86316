"""Do the answers lie in the coordinate frame that the data say? Looked at once, on the evaluation before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.data.answers import box_answer, box_answers
from mmrl.data.boxtext import Box
from mmrl.data.records import Record
from mmrl.rewards.frame_check import frame_report
from mmrl.vlm.show import said_boxes

#: Fewer answer boxes say nothing about a model.
FEWEST = 8


def frame_advice(outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[str]:
    """One line per frame of the data in which the boxes of the answers would fit better in another frame.

    info    as a rollout gives it; rows without `original_size` and `model_size` (no picture) are passed over.
    """
    lines = []
    for frame in sorted({r.frame for r in records}):
        rows = [
            (said_boxes(output), truth, one["original_size"], one["model_size"])
            for output, record, one in zip(outputs, records, info, strict=True)
            if record.frame == frame and "original_size" in one and (truth := _true_boxes(record))
        ]
        if sum(len(truth) for _, truth, _, _ in rows) < FEWEST:
            continue
        said, truths, originals, seen = zip(*rows, strict=True)
        report = frame_report(
            said,
            truths,
            frame=frame,
            original_sizes=[(w, h) for w, h in originals],
            model_sizes=[(w, h) for w, h in seen],
        )
        if report.suspicious:
            lines.append(f"warning: {report.text()}")
    return lines


def _true_boxes(record: Record) -> list[Box]:
    where = f"record {record.id!r}"
    if record.answer is None or record.task not in ("detection", "grounding"):
        return []
    if record.task == "grounding":
        return [box_answer(record.answer, where)]
    return [d.box for d in box_answers(record.answer, where)]
