"""Grounding reward of Visual-RFT (arXiv 2503.01785): GIoU + 1 of one box. Loads no torch.

Tasks: grounding. Checked with: formula only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.data.answers import box_answer, inside_tags
from mmrl.data.boxtext import parse_corners, parse_four
from mmrl.data.records import Record
from mmrl.rewards.boxes import giou
from mmrl.rewards.parse import answer_text
from mmrl.rewards.registry import reward


@reward("giou", tasks=("grounding",))
def giou_reward(outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """R_acc = GIoU + 1, in [0, 2]: twice the range of the format reward.

    The answer is `(x1,y1),(x2,y2)`; the first pair of corners counts, `[x1, y1, x2, y2]` is read as well. 2 when the
    stripped answer equals the record's as text; 0 when there is no box or its corners are swapped.
    """
    values = []
    for output, record in zip(outputs, records, strict=True):
        truth = box_answer(record.answer, f"record {record.id!r}")
        said = answer_text(output)
        if isinstance(record.answer, str) and said == inside_tags(record.answer):
            values.append(2.0)
            continue
        box = parse_corners(said) or parse_four(said)
        values.append(giou(box, truth) + 1.0 if box else 0.0)
    return values
