"""COCO average precision of one picture, without files or printing. Loads numpy, no torch.

The same matching and 101-point interpolation as pycocotools (all areas, at most 100 boxes per class); a test compares
the two. Areas of regions marked as crowd do not occur here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mmrl.data.boxtext import Detection
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
    values: list[float] = []
    for label in dict.fromkeys(d.label for d in truth):
        said = [d.box for d in predictions if d.label == label][:_MAX_BOXES]
        right = [d.box for d in truth if d.label == label]
        overlaps = [[iou(s, r) for r in right] for s in said]
        values += [_area(_matched(overlaps, len(right), t), len(right)) for t in thresholds]
    return float(np.mean(values))


@lru_cache(maxsize=4096)  # most pictures have few boxes: the same few patterns, at every threshold
def _area(hits: tuple[bool, ...], n_right: int) -> float:
    """Under the interpolated precision-recall curve of predictions that hit or not, in their order."""
    if not hits:
        return 0.0
    true = np.cumsum(hits)
    recall = true / n_right
    precision = true / np.arange(1, len(hits) + 1)
    best_from = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, _RECALLS, side="left")
    reached = at < len(hits)
    return float(best_from[at[reached]].sum() / len(_RECALLS))


def _matched(overlaps: list[list[float]], n_right: int, threshold: float) -> tuple[bool, ...]:
    """True where a prediction takes a free answer box with IoU >= threshold; the largest, the last one on a tie."""
    free = list(range(n_right))
    hits = []
    for row in overlaps:
        best, at = min(threshold, 1 - 1e-10), -1
        for j in free:
            if row[j] >= best:
                best, at = row[j], j
        if at >= 0:
            free.remove(at)
        hits.append(at >= 0)
    return tuple(hits)
