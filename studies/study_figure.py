"""The curves of a study as one small SVG: mean and range over the seeds, by share of the training time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 52, 212, 34, 46
COLOURS = ("#0b63c5", "#c2410c", "#4d7c0f", "#7e22ce", "#0f766e", "#a16207")
POINTS = 41
LABEL_GAP = 16.0


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the figure of the first metric."""
    metric = results["metrics"][0]
    grid = [i / (POINTS - 1) for i in range(POINTS)]
    curves = {name: [_at(r["curve"], metric, grid) for r in rows] for name, rows in results["runs"].items()}
    everything = [v for rows in curves.values() for row in rows for v in row]
    low, high, step = _scale(min(everything), max(everything))

    def x(share: float) -> float:
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    out = [_head(results, metric), *_axes(x, y, low, high, step)]
    ends = {}
    for (name, rows), colour in zip(curves.items(), COLOURS * len(curves)):
        columns = list(zip(*rows, strict=True))
        mean = [sum(c) / len(c) for c in columns]
        band = [(x(g), y(max(c))) for g, c in zip(grid, columns, strict=True)]
        band += [(x(g), y(min(c))) for g, c in zip(reversed(grid), reversed(columns), strict=True)]
        line = [(x(g), y(m)) for g, m in zip(grid, mean, strict=True)]
        out.append(f'<polygon points="{_points(band)}" fill="{colour}" opacity="0.14"/>')
        out.append(f'<polyline points="{_points(line)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        ends[name] = (y(mean[-1]), mean[-1], colour)
    for (name, (_, value, colour)), at in zip(ends.items(), apart([e[0] for e in ends.values()]), strict=True):
        label = escape(results["arms"][name]["label"])
        out.append(f'<text x="{x(1) + 8:.1f}" y="{at + 4:.1f}" fill="{colour}">{value:.3f} {label}</text>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*out, "</svg>"]) + "\n", encoding="utf-8")


def _head(results: dict[str, Any], metric: str) -> str:
    n = len(results["seeds"])
    title = f"{metric} of held-out records, mean and range over {n} seed{'s' * (n > 1)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="{escape(title)}">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n'
        f'<text x="{LEFT}" y="20" fill="#1f2937" font-size="13" font-weight="600">{escape(title)}</text>'
    )


def _axes(x: Any, y: Any, low: float, high: float, step: float) -> list[str]:
    out = []
    for i in range(round((high - low) / step) + 1):
        value = low + i * step
        out.append(f'<line x1="{x(0)}" x2="{x(1)}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#e5e7eb"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" fill="#4b5563" text-anchor="end">{value:.2f}</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        out.append(_centred(x(share), HEIGHT - BOTTOM + 18, f"{share:.0%}"))
    return [*out, _centred(x(0.5), HEIGHT - 8, "share of the training seconds, equal for all runs of a seed")]


def _centred(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="#4b5563" text-anchor="middle">{text}</text>'


def _at(curve: Sequence[dict[str, float]], metric: str, grid: Sequence[float]) -> list[float]:
    """The metric at shares of the run's own training time, straight lines between evaluations."""
    end = curve[-1]["seconds"]
    known = [(row["seconds"] / end if end else 1.0, row[metric]) for row in curve]
    out = []
    for share in grid:
        after = next((i for i, (s, _) in enumerate(known) if s >= share), len(known) - 1)
        (s0, v0), (s1, v1) = known[max(0, after - 1)], known[after]
        part = (share - s0) / (s1 - s0) if s1 > s0 else 1.0
        out.append(v0 + min(1.0, part) * (v1 - v0))
    return out


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """Round ends and step of an axis."""
    span = max(high - low, 1e-3)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * k for k in (1, 2, 5, 10) if span / (power * k) <= 6)
    return math.floor(low / step) * step, math.ceil(high / step) * step, step


def apart(at: Sequence[float], gap: float = LABEL_GAP) -> list[float]:
    """Heights of labels, moved down until neighbours are `gap` apart, then centred where they wanted to be."""
    order = sorted(range(len(at)), key=lambda i: at[i])
    out = list(at)
    for before, here in zip(order, order[1:]):
        out[here] = max(out[here], out[before] + gap)
    shift = (sum(at) - sum(out)) / len(at)
    return [v + shift for v in out]


def _points(line: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in line)
