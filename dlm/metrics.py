"""AUP: how much accuracy is kept while more tokens are decoded at once (d3LLM, arXiv 2601.07568)."""

from __future__ import annotations

import math
from collections.abc import Sequence

SHARPNESS, TOLERATED = 3.0, 5.0


def aup(points: Sequence[tuple[float, float]], *, y_max: float | None = None) -> float:
    """rho_1 y_1 + sum_{i >= 2} (rho_i - rho_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2, W(y) = min(exp(-3 (1 -
    y / y_max)), 1), over the points sorted by rho whose y is at least y_1 - 5.

    points: (rho, y): tokens per forward, accuracy in %. y_max: the best accuracy of all compared methods; default that
    of the points. One point gives rho * y; none gives 0.
    """
    ordered = sorted(points)
    if not ordered:
        return 0.0
    best = max(y for _, y in ordered) if y_max is None else y_max
    kept = [(rho, y) for rho, y in ordered if y >= ordered[0][1] - TOLERATED]

    def weighted(y: float) -> float:
        return y * min(math.exp(-SHARPNESS * (1 - y / best)), 1.0) if best > 0 else 0.0

    area = kept[0][0] * kept[0][1]
    for (before, low), (after, high) in zip(kept, kept[1:]):
        area += 0.5 * (after - before) * (weighted(high) + weighted(low))
    return area
