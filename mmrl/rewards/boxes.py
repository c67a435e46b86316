"""Geometry of boxes (x1, y1, x2, y2): continuous areas, no "+1" pixel conventions. Loads no torch."""

from __future__ import annotations

import math

from mmrl.data.boxtext import Box


def area(box: Box) -> float:
    """Width times height; 0 when either is not positive."""
    width, height = box[2] - box[0], box[3] - box[1]
    return width * height if width > 0 and height > 0 else 0.0


def _intersection(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def is_inverted(box: Box) -> bool:
    """x2 < x1 or y2 < y1."""
    return box[2] < box[0] or box[3] < box[1]


def iou(a: Box, b: Box) -> float:
    """Intersection over union, in [0, 1]; 0 for boxes without area and where the areas overflow."""
    ax1, ay1, ax2, ay2 = a  # written out: a detection reward calls this for every pair of boxes
    bx1, by1, bx2, by2 = b
    if ax2 < ax1 or ay2 < ay1 or bx2 < bx1 or by2 < by1:
        return 0.0
    width = (ax2 if ax2 < bx2 else bx2) - (ax1 if ax1 > bx1 else bx1)
    height = (ay2 if ay2 < by2 else by2) - (ay1 if ay1 > by1 else by1)
    if width <= 0 or height <= 0:
        return 0.0
    inside = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inside
    if not inside > 0 or not union > 0 or not math.isfinite(union):
        return 0.0
    return min(inside / union, 1.0)


def giou(a: Box, b: Box) -> float:
    """Generalised IoU (arXiv 1902.09630), in [-1, 1]; -1 for an inverted box.

    IoU - (C - U) / C with C the smallest enclosing box; IoU alone when C has no area. The -1 is a choice: the value 0
    of a degenerate box would beat every honest box that misses.
    """
    if is_inverted(a) or is_inverted(b):
        return -1.0
    inside = _intersection(a, b)
    union = area(a) + area(b) - inside
    enclosing = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    if not math.isfinite(union) or not math.isfinite(enclosing):
        return -1.0
    overlap = inside / union if union > 0 else 0.0
    value = overlap - (enclosing - union) / enclosing if enclosing > 0 else overlap
    return max(-1.0, min(1.0, value))
