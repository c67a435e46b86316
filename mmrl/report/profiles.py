"""What policies drew of themselves over the decoding steps: schedules, before and after. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.report.frontier import is_finite
from mmrl.report.runs import Run

#: name -> title; others are titled by their name. The order is the order on the page.
TITLES = {
    "ratio": "Mask ratio",
    "remask": "Re-mask temperature",
    "sample": "Sample temperature",
    "guidance": "Guidance",
}
COLUMNS = ("x", "mean", "spread", "base")


@dataclass(frozen=True)
class Line:
    """side: base, before or after. spread: one standard deviation to each side; empty where there is none."""

    run: int
    side: str
    x: list[float]
    y: list[float]
    spread: list[float]


@dataclass(frozen=True)
class Panel:
    """One chart. The start is left out where it is the hand-made schedule (`base`)."""

    name: str
    title: str
    lines: list[Line]


def panels(runs: Sequence[Run]) -> list[Panel]:
    """A chart for each name that some run has stored, from its first and its last file. What cannot be read is added to
    the run's `problems`."""
    found: dict[str, list[Line]] = {}
    for number, run in enumerate(runs):
        files = sorted((run.path / "samples").glob("profiles-step-*.json"))
        if not files:
            continue
        first, last = (_read(file, run.problems) for file in (files[0], files[-1]))
        for name in [*first, *(n for n in last if n not in first)]:
            found.setdefault(name, []).extend(_lines(number, first.get(name), last.get(name) if files[1:] else None))
    rank = {name: i for i, name in enumerate(TITLES)}
    names = sorted(found, key=lambda name: (rank.get(name, len(rank)), name))
    return [Panel(name, TITLES.get(name) or name.replace("_", " ").capitalize(), found[name]) for name in names]


def _lines(run: int, first: dict[str, list[float]] | None, last: dict[str, list[float]] | None) -> list[Line]:
    out = []
    known = last or first or {}
    base = known.get("base", [])
    if base:
        out.append(Line(run, "base", known["x"], base, []))
    for side, own in (("before", first), ("after", last)):
        if own and not (side == "before" and own["mean"] == own.get("base") and own["base"] == base):
            spread = own.get("spread", [])
            out.append(Line(run, side, own["x"], own["mean"], spread if any(spread) else []))
    return out


def _read(file: Path, problems: list[str]) -> dict[str, dict[str, list[float]]]:
    """By name, those that are lists of finite numbers of one length."""
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{file.name}: cannot be read ({error}); shown without it")
        return {}
    named = whole.items() if isinstance(whole, dict) else [("the file", whole)]
    out = {}
    for name, profile in named:
        if _is_profile(profile):
            out[name] = {key: profile[key] for key in COLUMNS if key in profile}
        else:
            problems.append(
                f"{file.name}: {name}: x and mean must be lists of as many finite numbers; shown without it"
            )
    return out


def _is_profile(profile: Any) -> bool:
    if not isinstance(profile, dict) or not {"x", "mean"} <= profile.keys():
        return False
    lists = [profile[key] for key in COLUMNS if key in profile]
    plain = all(isinstance(values, list) and all(is_finite(v) for v in values) for values in lists)
    return plain and len({len(values) for values in lists}) == 1 and len(profile["x"]) > 0
