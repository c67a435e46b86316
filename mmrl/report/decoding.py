"""Judge and diversity over the number of decoding steps, with the learned and the hand-made schedule. Loads no torch.

An evaluation in K steps is a metric `judge@K` or `diversity@K`, and `base/judge@K` with the hand-made schedule: one
point of a curve. `steps_to_base_quality` says how many steps reach the quality of the start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.report.frontier import is_finite
from mmrl.report.runs import Run

WHAT = ("judge", "diversity")
#: Lines of a chart: (side of the summary, prefix of the metric). The hand-made schedule at the start is drawn only
#: where it is not what the start decodes with.
SIDES = {
    "before": ("before", ""),
    "before-base": ("before", "base/"),
    "after-base": ("after", "base/"),
    "after": ("after", ""),
}
REACHED = "steps_to_base_quality"
NOTES = {"": "with the mean of the learned schedule", "base/": "with the hand-made schedule"}
_NAME = re.compile(r"(base/)?(judge|diversity)@([1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Point:
    steps: int
    value: float


@dataclass(frozen=True)
class Decoding:
    """The curves of one run, `lines[judge or diversity][one of SIDES]`, in order of steps; what was not measured is
    empty. reached: `steps_to_base_quality` before and after, as text; empty where the run did not look."""

    run: int
    lines: dict[str, dict[str, list[Point]]]
    reached: str

    def cell(self, what: str, side: str, steps: int) -> str:
        """For the table."""
        found = next((p for p in self.lines[what][side] if p.steps == steps), None)
        return "–" if found is None else f"{found.value:.3f}"


def decodings(runs: Sequence[Run]) -> list[Decoding]:
    """One for each run whose summary holds a point; others have none."""
    out = []
    for number, run in enumerate(runs):
        lines = {what: _lines(run.summary, what) for what in WHAT}
        if any(points for sides in lines.values() for points in sides.values()):
            out.append(Decoding(number, lines, reached(run.summary)))
    return out


def _lines(summary: Mapping[str, Any], what: str) -> dict[str, list[Point]]:
    lines = {side: curve(summary.get(half) or {}, f"{prefix}{what}") for side, (half, prefix) in SIDES.items()}
    if lines["before-base"] == lines["before"]:
        lines["before-base"] = []
    return lines


def curve(metrics: Mapping[str, Any], name: str) -> list[Point]:
    """The points of `name@K` of one evaluation in order of K; what is no finite number is left out."""
    out = []
    for key, value in metrics.items():
        found = _NAME.fullmatch(key)
        if found and key == f"{name}@{found.group(3)}" and is_finite(value):
            out.append(Point(int(found.group(3)), float(f"{float(value):.5g}")))
    return sorted(out, key=lambda point: point.steps)


def titled(name: str) -> str | None:
    """`Held-out judge in 4 steps`; None of other names."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return f"Held-out {found.group(2)} in {found.group(3)} steps{', hand-made' if found.group(1) else ''}"


def note_of(name: str) -> str:
    """Which schedule such a metric belongs to."""
    return NOTES["base/" if name.startswith("base/") else ""]


def is_drawn(name: str) -> bool:
    """The charts show this metric, so that tiles and tables can do without."""
    return name == REACHED or _NAME.fullmatch(name) is not None


def table(found: Sequence[Decoding]) -> tuple[list[tuple[str, str]], list[tuple[int, int, list[str]]]]:
    """(columns (what, side) that some run has, rows (run, steps, cells))."""
    columns = [(w, s) for w in WHAT for s in SIDES if any(own.lines[w][s] for own in found)]
    rows = []
    for own in found:
        counts = {p.steps for sides in own.lines.values() for points in sides.values() for p in points}
        rows += [(own.run, k, [own.cell(what, side, k) for what, side in columns]) for k in sorted(counts)]
    return columns, rows


def reached(summary: Mapping[str, Any]) -> str:
    """`8 → 4`, `8 → not reached`; nothing where neither side says it."""
    sides = [summary.get(half) or {} for half in ("before", "after")]
    if not any(REACHED in side for side in sides):
        return ""
    return " → ".join("–" if REACHED not in side else _count(side[REACHED]) for side in sides)


def _count(value: Any) -> str:
    return f"{value:g}" if is_finite(value) else "not reached"
