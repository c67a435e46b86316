"""Temporal grounding: intersection over union of predicted and true segments (DeepVideo-R1, arXiv 2506.07464). Loads no
torch.

Tasks: grounding-time. Checked with: formula only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmrl.data.records import Record
from mmrl.rewards.parse import answer_text
from mmrl.rewards.registry import reward
from video.rewards.segments import Segment, matched_tiou, read_segments, segments_answer, set_tiou, tiou

Several = Literal["set", "matched", "any"]


def right_segments(record: Record) -> list[Segment]:
    """The record's answer, [start, end] or [[start, end], ...] in seconds. Raises UserError for anything else."""
    return segments_answer(record.answer, f"record {record.id!r}")


@reward("tiou", tasks=("grounding-time",), check=right_segments)
def tiou_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    several: Several = "set",
) -> list[float]:
    """Temporal IoU of the segments in the answer, in [0, 1]; 0 without a valid one. All forms are the plain tIoU when
    one segment is said and one is right.

    set       (default) |P and Q| / |P or Q| of the two unions of time: no matching is needed, order and cuts are free.
    matched   sum of tIoU of the best one-to-one matching (the optimal assignment, not a greedy one) over the larger
              number of segments: a segment too many or too few costs its share.
    any       the first segment said against its best right one, as NExT-GQA (arXiv 2309.01327) evaluates. Naming more
              segments earns nothing.
    """
    return [_score(output, record, several) for output, record in zip(outputs, records, strict=True)]


def _score(output: str, record: Record, several: Several) -> float:
    right = right_segments(record)
    said, pairs = read_segments(answer_text(output))
    if not said:
        return 0.0
    if several == "set":
        return set_tiou(said, right)
    if several == "matched":
        return matched_tiou(said, right, n_said=pairs)
    return max(tiou(said[0], one) for one in right)
