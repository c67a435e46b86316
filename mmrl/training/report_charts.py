"""Curves of a run as plain numbers ready to draw: scales, ticks, thinning, smoothing. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
POINTS = 400  # more cannot be told apart at this width
FLAT = 1e-12  # relative: values closer than this are one value
SMOOTH_FROM = 40  # shorter curves are drawn as they are

#: metric -> (title, what it says). The order is the order on the page; what is not listed follows, by name.
KNOWN: dict[str, tuple[str, str]] = {
    "reward": ("Reward", "mean over the rollouts of a step"),
    "eval/mean_iou": ("Held-out mean IoU", "greedy answers, scenes that ask for one box"),
    "eval/acc_50": ("Held-out accuracy at IoU 0.5", "share of greedy answers above IoU 0.5"),
    "eval/reward": ("Held-out reward", "mean reward of greedy answers"),
    "kl": ("KL to the start", "per token; how far the policy has moved"),
    "clip_high": ("Clipped above", "share of tokens whose ratio hit the upper bound"),
    "clip_low": ("Clipped below", "share of tokens whose ratio hit the lower bound"),
    "length": ("Answer length", "mean tokens of a rollout"),
    "entropy": ("Entropy", "per token; near 0 all answers are the same"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "tokens_per_s": ("Tokens per second", "sampled tokens over the time of a whole step"),
    "flat_groups": ("Groups without spread", "share where all answers earned the same"),
    "sampler_gap": ("Sampler gap", "largest |ratio - 1| before the first update"),
    "reward_std": ("Spread of rewards", "standard deviation over the rollouts of a step"),
    "distinct": ("Distinct answers", "share of different answers among the rollouts"),
    "truncated": ("Truncated answers", "share that ran into the length limit"),
    "loss": ("Loss", "sum of the terms; need not fall"),
    "lr": ("Learning rate", ""),
}
NOT_CURVES = {"step", "rows", "updates"}
MAIN = 12  # charts shown at once; the rest is folded


@dataclass(frozen=True)
class Line:
    """One run's curve: SVG points of the raw and the smoothed values, and the numbers for the read-out."""

    run: int
    raw: str
    smooth: str
    dots: list[tuple[float, float]]
    steps: list[float]
    values: list[float]
    xs: list[float]
    last: str


@dataclass(frozen=True)
class Chart:
    name: str
    title: str
    note: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def charts(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """A chart for every numeric metric of any run; run i keeps its number, so that colours agree everywhere."""
    series: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for i, rows in enumerate(runs):
        for row in rows:
            for key, value in row.items():
                if key in NOT_CURVES or not _is_number(value):
                    continue
                series.setdefault(key, {}).setdefault(i, []).append((float(row.get("step", 0)), float(value)))
    order = {name: rank for rank, name in enumerate(KNOWN)}
    names = sorted(series, key=lambda name: (order.get(name, len(order)), name))
    return [_chart(name, series[name]) for name in names]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _chart(name: str, by_run: Mapping[int, list[tuple[float, float]]]) -> Chart:
    thin = {run: thinned(sorted(points)) for run, points in by_run.items()}
    xs = [x for points in thin.values() for x, _ in points]
    ys = [y for points in thin.values() for _, y in points]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_values = ticks(min(ys), max(ys))
    y_low, y_high = y_values[0], y_values[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * (x - x_low) / (x_high - x_low)
        down = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - y_low) / (y_high - y_low))
        return round(across, 1), round(down, 1)

    lines = []
    for run, points in thin.items():
        spots = [at(x, y) for x, y in points]
        soft = [at(x, y) for (x, _), y in zip(points, smoothed([y for _, y in points]))]
        few = len(points) <= 12
        lines.append(
            Line(
                run=run,
                raw="" if len(points) < SMOOTH_FROM else _path(spots),
                smooth=_path(spots if len(points) < SMOOTH_FROM else soft),
                dots=spots if few else [],
                steps=[x for x, _ in points],
                values=[float(f"{y:.5g}") for _, y in points],
                xs=[x for x, _ in spots],
                last=number(points[-1][1]),
            )
        )
    title, note = KNOWN.get(name, (name.replace("_", " ").replace("/", ": "), ""))
    return Chart(
        name=name,
        title=title,
        note=note,
        lines=lines,
        x_ticks=[(at(x, y_low)[0], f"{x:g}") for x in ticks(x_low, x_high, inside=True) if x == round(x)],
        y_ticks=[(at(x_low, y)[1], number(y)) for y in y_values],
    )


def _path(spots: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in spots)


def thinned(points: Sequence[tuple[float, float]], limit: int = POINTS) -> list[tuple[float, float]]:
    """At most `limit` points, each the mean of its neighbours; the first and last step stay."""
    if len(points) <= limit:
        return list(points)
    size = len(points) / limit
    groups = [points[int(i * size) : int((i + 1) * size)] for i in range(limit)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    means[0] = (points[0][0], means[0][1])
    means[-1] = (points[-1][0], means[-1][1])
    return means


def smoothed(values: Sequence[float]) -> list[float]:
    """Running mean over about a twentieth of the curve to each side; ends use what there is."""
    reach = max(1, len(values) // 20)
    out = []
    for i in range(len(values)):
        window = values[max(0, i - reach) : i + reach + 1]
        out.append(sum(window) / len(window))
    return out


def ticks(low: float, high: float, count: int = 4, *, inside: bool = False) -> list[float]:
    """Round numbers that span [low, high], or lie inside it."""
    if high - low <= FLAT * max(1.0, abs(low), abs(high)):  # rounding noise is no curve
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9) if inside else math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if inside else math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def number(value: float) -> str:
    """Short text of a number: four digits that matter."""
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"
