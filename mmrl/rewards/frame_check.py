"""Start-up check: in which coordinate frame does the model answer? Loads no torch.

The usual cause of an IoU reward that stays near 0 is a model that speaks in pixels against labels in 0..1000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmrl.data.boxtext import Box
from mmrl.data.frames import Size, convert_box
from mmrl.data.records import FRAMES
from mmrl.rewards.boxes import iou

MARGIN = 0.05  # another frame must be this much better before we speak up


@dataclass(frozen=True)
class FrameReport:
    """`mean_iou`: frame -> mean over answer boxes of the best IoU, had the predictions been written in that frame."""

    mean_iou: dict[str, float]
    assumed: str
    n: int

    @property
    def best(self) -> str:
        return max(self.mean_iou, key=lambda frame: (self.mean_iou[frame], frame == self.assumed))

    @property
    def suspicious(self) -> bool:
        return self.mean_iou[self.best] > self.mean_iou[self.assumed] + MARGIN

    def text(self) -> str:
        shown = ", ".join(f"{frame} {value:.3f}" for frame, value in self.mean_iou.items())
        line = f"mean IoU of {self.n} answer boxes by assumed frame: {shown}"
        if self.suspicious:
            line += (
                f"; the model seems to answer in {self.best}, the data say {self.assumed}: set `frame` and the prompt"
            )
        return line


def frame_report(
    predictions: Sequence[Sequence[Box]],
    answers: Sequence[Sequence[Box]],
    *,
    frame: str,
    original_sizes: Sequence[Size],
    model_sizes: Sequence[Size],
) -> FrameReport:
    """Compare the boxes predicted for each record with its answer boxes (in `frame`) under every frame."""
    totals = dict.fromkeys(FRAMES, 0.0)
    count = 0
    for said, right, original, model in zip(predictions, answers, original_sizes, model_sizes, strict=True):
        count += len(right)
        for candidate in FRAMES:
            moved = [convert_box(b, candidate, frame, original_size=original, model_size=model) for b in said]
            totals[candidate] += sum(max((iou(p, t) for p in moved), default=0.0) for t in right)
    return FrameReport({f: v / max(count, 1) for f, v in totals.items()}, assumed=frame, n=count)
