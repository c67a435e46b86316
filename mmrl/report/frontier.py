"""Accuracy against tokens per forward over confidence thresholds: numbers for the page. Loads no torch.

Models that fill several tokens in one forward trade accuracy for speed. An evaluation at threshold X is a pair of
metrics, `accuracy@X` (a share) and `tpf@X` (tokens per denoising forward): one point of a curve.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from mmrl.report.runs import Run

HALVES = {"accuracy": "tpf", "tpf": "accuracy"}
TITLES = {"accuracy": "Held-out accuracy", "tpf": "Tokens per forward"}
LARGEST = 1e300  # above it a number is none: the page computes with floats
_NAME = re.compile(r"(accuracy|tpf)@([0-9]{1,9}(?:\.[0-9]{1,18})?(?:e-?[0-9]{1,2})?)")


@dataclass(frozen=True)
class Point:
    """threshold: as the summary writes it, text that reads as a number."""

    threshold: str
    tpf: float
    accuracy: float


@dataclass(frozen=True)
class Frontier:
    """The curves of one run, in order of threshold; a side that was not measured is empty. aup: before and after."""

    run: int
    before: list[Point]
    after: list[Point]
    aup: tuple[float | None, float | None]

    @property
    def aup_text(self) -> str:
        """`252.5 → 492.4`; nothing where neither was measured."""
        if self.aup == (None, None):
            return ""
        return " → ".join("–" if value is None else f"{value:.1f}" for value in self.aup)

    @property
    def aup_change(self) -> float | None:
        """In percent of the start; None where one is missing or the start is not above 0."""
        before, after = self.aup
        return None if before is None or after is None or before <= 0 else 100 * (after / before - 1)

    def cell(self, threshold: str) -> str:
        """For the table: `0.812 at 2.10 → 0.823 at 3.95`, accuracy at tokens per forward."""
        found = [next((p for p in side if p.threshold == threshold), None) for side in (self.before, self.after)]
        if not any(found):
            return "–"
        return " → ".join("–" if p is None else f"{p.accuracy:.3f} at {p.tpf:.2f}" for p in found)


def frontiers(runs: Sequence[Run]) -> list[Frontier]:
    """One for each run whose summary holds at least one whole pair; others have none."""
    out = []
    for number, run in enumerate(runs):
        before, after = ((run.summary.get(side) or {}) for side in ("before", "after"))
        aup = tuple(_number(side.get("aup")) for side in (before, after))
        own = Frontier(number, curve(before), curve(after), (aup[0], aup[1]))
        if own.before or own.after:
            out.append(own)
    return out


def curve(metrics: Mapping[str, Any]) -> list[Point]:
    """The pairs of one evaluation in order of threshold. Half a pair, and what is no finite number, is left out."""
    out = []
    for name, accuracy in metrics.items():
        key = swept(name)
        if key is None or key[0] != "accuracy":
            continue
        tpf = metrics.get(f"tpf@{key[1]}")
        if is_finite(accuracy) and is_finite(tpf):
            out.append(Point(key[1], _short(tpf), _short(accuracy)))
    return sorted(out, key=lambda point: (float(point.threshold), point.threshold))


def swept(name: str) -> tuple[str, str] | None:
    """(`accuracy` or `tpf`, threshold) of a metric's name such as `tpf@0.9`; None of any other name."""
    found = _NAME.fullmatch(name)
    return (found.group(1), found.group(2)) if found else None


def titled(name: str) -> str | None:
    """`Held-out accuracy at threshold 0.9`; None of a name that is no half of a pair."""
    key = swept(name)
    return f"{TITLES[key[0]]} at threshold {key[1]}" if key else None


def folded(runs: Sequence[Run]) -> frozenset[str]:
    """The metrics that the chart shows whole, so that tiles and tables can do without: all halves but those that in
    some run lack the other one."""
    found: set[str] = set()
    alone: set[str] = set()
    for metrics in (run.summary.get(side) or {} for run in runs for side in ("before", "after")):
        drawn = {point.threshold for point in curve(metrics)}
        for name in metrics:
            if key := swept(name):
                (found if key[1] in drawn else alone).add(name)
    return frozenset(found - alone)


def thresholds(found: Sequence[Frontier]) -> list[str]:
    """All thresholds of any curve, in order."""
    names = {point.threshold for own in found for side in (own.before, own.after) for point in side}
    return sorted(names, key=lambda name: (float(name), name))


def is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _number(value: Any) -> float | None:
    return float(value) if is_finite(value) else None


def _short(value: float) -> float:
    return float(f"{float(value):.5g}")
