"""Curves of runs as plain numbers for the page: which metrics, in which order, thinned. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrl.report import frontier

POINTS = 400  # of a run's curve; more cannot be told apart at the width of a chart

#: metric -> (title, what it says). The order is the order on the page; what is not listed follows, by name.
KNOWN: dict[str, tuple[str, str]] = {
    "reward": ("Reward", "mean over the rollouts of a step"),
    "eval/mean_iou": ("Held-out mean IoU", "greedy answers, scenes that ask for one box"),
    "eval/acc_50": ("Held-out accuracy at IoU 0.5", "share of greedy answers above IoU 0.5"),
    "eval/accuracy": ("Held-out accuracy", "share of greedy answers that are right"),
    "eval/tpf": ("Held-out tokens per forward", "tokens up to the end over denoising forwards"),
    "eval/aup": ("Held-out AUP", "area under accuracy (%) over tokens per forward"),
    "eval/reward": ("Held-out reward", "mean reward of greedy answers"),
    "eval/judge": ("Held-out judge", "mean of the rewards that are never trained on"),
    "eval/diversity": ("Held-out diversity", "deviation of each pixel over the pictures of a prompt"),
    "eval/finished": ("Held-out finished", "share of greedy answers that came to their end"),
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
#: The same for models that draw: their decisions are denoising steps.
DRAWN: dict[str, tuple[str, str]] = {
    "eval/reward": ("Held-out reward", "mean over pictures of the noiseless sampler"),
    "kl": ("KL to the start", "per denoising step; how far the policy has moved"),
    "clip_high": ("Clipped above", "share of denoising steps whose ratio hit the upper bound"),
    "clip_low": ("Clipped below", "share of denoising steps whose ratio hit the lower bound"),
    "length": ("Trained steps", "denoising steps of a picture that are trained"),
    "tokens_per_s": ("Denoising steps per second", "trained ones over the time of a whole step"),
    "flat_groups": ("Groups without spread", "share where all pictures earned the same"),
    "distinct": ("Distinct pictures", "share of different pictures among the rollouts"),
    "spread": ("Spread of pictures", "deviation of each pixel over the pictures of a prompt, while training"),
}
NOT_CURVES = {"step", "rows", "updates"}
MAIN = 12  # charts shown at once; the rest is folded
SWEPT_NOTE = "one confidence threshold of parallel decoding"


@dataclass
class Chart:
    """One metric. `lines`: run number -> (which of `Curves.steps` of that run, values)."""

    name: str
    title: str
    note: str
    lines: dict[int, tuple[int, list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Curves:
    """steps: run number -> lists of steps that curves of this run share. merged: steps that one point stands for, at
    most; 1 where nothing was thinned. main: how many of the charts are shown at once."""

    charts: list[Chart]
    steps: dict[int, list[list[float]]]
    merged: int
    main: int = MAIN


def curves(runs: Sequence[Sequence[Mapping[str, Any]]], *, drawn: bool = False) -> Curves:
    """A chart for every numeric metric of any run; run i keeps its number, so that colours agree everywhere. drawn: the
    words of models that draw."""
    known = KNOWN | DRAWN if drawn else KNOWN
    series: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for i, rows in enumerate(runs):
        for row in rows:
            for key, value in row.items():
                if key in NOT_CURVES or not _is_number(value):
                    continue
                series.setdefault(key, {}).setdefault(i, []).append((float(row.get("step", 0)), float(value)))
    order = {name: rank for rank, name in enumerate(known)}
    steps: dict[int, list[list[float]]] = {}
    charts, merged = [], 1

    def rank(name: str) -> tuple[bool, bool, int, str]:  # what never changes comes last, then single thresholds
        values = {y for points in series[name].values() for _, y in points}
        return _threshold(name) is not None, len(values) == 1, order.get(name, len(order)), name

    for name in sorted(series, key=rank):
        chart = Chart(name, *(known.get(name) or _words(name)))
        for run, points in series[name].items():
            merged = max(merged, math.ceil(len(points) / POINTS))
            thin = thinned(sorted(points))
            own, xs = steps.setdefault(run, []), [round(x, 1) for x, _ in thin]
            if xs not in own:
                own.append(xs)
            chart.lines[run] = (own.index(xs), [float(f"{y:.5g}") for _, y in thin])
        charts.append(chart)
    main = min(MAIN, sum(_threshold(chart.name) is None for chart in charts))
    return Curves(charts, steps, merged, main)


def _threshold(name: str) -> str | None:
    """The title of an evaluation at one confidence threshold; None of other metrics. Their own chart shows them."""
    return frontier.titled(name.removeprefix("eval/")) if name.startswith("eval/") else None


def _words(name: str) -> tuple[str, str]:
    title = _threshold(name)
    return (title, SWEPT_NOTE) if title else (name.replace("_", " ").replace("/", ": "), "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
