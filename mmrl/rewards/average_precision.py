"""COCO average precision of one picture, without files or printing. Loads numpy, no torch.

The same matching and 101-point interpolation as pycocotools (all areas, at most 100 boxes per class); a test compares
the two. Areas of regions marked as crowd do not occur here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mmrl.data.boxtext import Box, Detection
from mmrl.rewards.boxes import iou

COCO_THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))
_RECALLS = np.linspace(0.0, 1.0, 101)
_MAX_BOXES = 100


def average_precision(
    predictions: Sequence[Detection], truth: Sequence[Detection], *, thresholds: Sequence[float] = COCO_THRESHOLDS
) -> float:
    """Mean over the classes of the answer and the thresholds, in [0, 1]. All scores are 1: order decides.

    Both empty: 1. One empty: 0. Predictions of a class that the answer lacks are not punished (COCO leaves such classes
    out of the mean).
    """
    if not truth or not predictions:
        return float(not truth and not predictions)
    values = []
    for label in dict.fromkeys(d.label for d in truth):
        said = [d.box for d in predictions if d.label == label][:_MAX_BOXES]
        right = [d.box for d in truth if d.label == label]
        values += [_one_class(said, right, t) for t in thresholds]
    return float(np.mean(values))


def _one_class(said: list[Box], right: list[Box], threshold: float) -> float:
    """Area under the interpolated precision-recall curve."""
    if not said:
        return 0.0
    true = np.cumsum(_matched(said, right, threshold))
    recall = true / len(right)
    precision = true / np.arange(1, len(said) + 1)
    best_from = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, _RECALLS, side="left")
    reached = at < len(said)
    return float(best_from[at[reached]].sum() / len(_RECALLS))


def _matched(said: list[Box], right: list[Box], threshold: float) -> npt.NDArray[np.int64]:
    """1 where a prediction takes a free answer box with IoU >= threshold; the largest, the last one on a tie."""
    free = list(range(len(right)))
    hit = np.zeros(len(said), dtype=np.int64)
    for i, box in enumerate(said):
        best, at = min(threshold, 1 - 1e-10), -1
        for j in free:
            overlap = iou(box, right[j])
            if overlap >= best:
                best, at = overlap, j
        if at >= 0:
            free.remove(at)
            hit[i] = 1
    return hit
