"""Means, spreads and paired intervals over seeds. Needs nothing but the standard library."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, std (n - 1; None for one value), min, max."""
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
    }


def paired(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Difference by seed and its two-sided 95 % interval by Student's t; no interval for one seed."""
    found = spread([a - b for a, b in zip(values, others, strict=True)])
    if found["std"] is not None:
        half = t_quantile(found["n"] - 1) * found["std"] / math.sqrt(found["n"])
        found["low"], found["high"] = found["mean"] - half, found["mean"] + half
    return found


def t_quantile(df: int, level: float = 0.95) -> float:
    """t with P(|T| <= t) = level for Student's T with df >= 1 degrees of freedom."""
    low, high = 0.0, 1.0
    while _inside(high, df) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, df) < level else (low, middle)
    return (low + high) / 2


def _inside(t: float, df: int) -> float:
    """P(|T| <= t), by Simpson's rule on T = sqrt(df) tan(u), whose density is proportional to cos(u)^(df - 1)."""
    end, n = math.atan(t / math.sqrt(df)), 400
    scale = 2 * math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    total = sum((1 if i in (0, n) else 4 if i % 2 else 2) * math.cos(end * i / n) ** (df - 1) for i in range(n + 1))
    return scale * total * end / n / 3
