"""Curves of runs as plain numbers for the page: which metrics, in which order, thinned. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrl.report import decoding, frontier

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
#: The same for models that fill a canvas of tokens, on top of that.
FILLED: dict[str, tuple[str, str]] = {
    "eval/reward": ("Held-out reward", "mean over pictures decoded with the mean of the schedule"),
    "kl": ("KL to the start", "per decision: a token, or a step of the schedule"),
    "clip_high": ("Clipped above", "share of decisions whose ratio hit the upper bound"),
    "clip_low": ("Clipped below", "share of decisions whose ratio hit the lower bound"),
    "length": ("Decoding steps", "of a picture, while training"),
    "entropy": ("Entropy", "per token, near 0 all are the same; of the schedule a density's, of any sign"),
    "tokens_per_s": ("Decisions per second", "trained ones over the time of a whole step"),
}
#: Where phases alternate, what belongs to the rollouts, not to what is trained on them: one curve over all steps.
OF_ROLLOUTS = ("reward", "eval/", "length", "flat_groups", "truncated", "distinct", "spread", "filtered", "resample")
COUNTS = ("skipped_updates", "skipped_records", "reward_failures")
NOT_CURVES = {"step", "rows", "updates"}
MAIN = 12  # charts shown at once; the rest is folded
SWEPT_NOTE = "one confidence threshold of parallel decoding"


@dataclass
class Chart:
    """One metric. `lines`: run number -> [(phase, which of `Curves.steps` of that run, values)]; the phase is "" where
    one curve goes over all steps."""

    name: str
    title: str
    note: str
    lines: dict[int, list[tuple[str, int, list[float]]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Curves:
    """steps: run number -> lists of steps that curves of this run share. merged: steps that one point stands for, at
    most; 1 where nothing was thinned. main: how many of the charts are shown at once. phases: those that alternate in
    some run, in order; none where none do."""

    charts: list[Chart]
    steps: dict[int, list[list[float]]]
    merged: int
    main: int = MAIN
    phases: tuple[str, ...] = ()


def curves(runs: Sequence[Sequence[Mapping[str, Any]]], *, drawn: bool = False, filled: bool = False) -> Curves:
    """A chart for every numeric metric of any run; run i keeps its number, so that colours agree everywhere. Where some
    run trains in alternating phases, what an update measures has a line for each, in all runs.

    drawn: the words of models that draw; filled: of those that fill a canvas of tokens.
    """
    known = KNOWN | (DRAWN if drawn else {}) | (FILLED if filled else {})
    phases = _phases(runs)
    series: dict[str, dict[int, dict[str, list[tuple[float, float]]]]] = {}
    for i, rows in enumerate(runs):
        for row in rows:
            for key, value in row.items():
                if key in NOT_CURVES or not _is_number(value):
                    continue
                phase = str(row.get("phase") or "") if phases and _of_updates(key) else ""
                own = series.setdefault(key, {}).setdefault(i, {}).setdefault(phase, [])
                own.append((float(row.get("step", 0)), float(value)))
    order = {name: rank for rank, name in enumerate(known)}
    steps: dict[int, list[list[float]]] = {}
    charts, merged = [], 1

    def rank(name: str) -> tuple[bool, bool, int, str]:  # what never changes comes last, then single points of a curve
        lines = (points for parts in series[name].values() for points in parts.values())
        still = all(len({y for _, y in points}) == 1 for points in lines)
        one = len({y for parts in series[name].values() for points in parts.values() for _, y in points}) == 1
        return _swept(name) is not None, one or phases != () and still, order.get(name, len(order)), name

    for name in sorted(series, key=rank):
        chart = Chart(name, *(known.get(name) or _words(name)))
        for run, parts in series[name].items():
            own_steps = steps.setdefault(run, [])
            for phase in sorted(parts, key=lambda phase: (*phases, phase).index(phase)):
                merged = max(merged, math.ceil(len(parts[phase]) / POINTS))
                thin = thinned(sorted(parts[phase]))
                xs = [round(x, 1) for x, _ in thin]
                if xs not in own_steps:
                    own_steps.append(xs)
                line = (phase, own_steps.index(xs), [float(f"{y:.5g}") for _, y in thin])
                chart.lines.setdefault(run, []).append(line)
        charts.append(chart)
    main = min(MAIN, sum(_swept(chart.name) is None for chart in charts))
    return Curves(charts, steps, merged, main, phases)


def _phases(runs: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[str, ...]:
    """All phases, in order, when some run has several; none otherwise: each of its curves is of one kind."""
    each = [dict.fromkeys(row["phase"] for row in rows if isinstance(row.get("phase"), str)) for rows in runs]
    return tuple(dict.fromkeys(phase for own in each for phase in own)) if any(len(own) > 1 for own in each) else ()


def _of_updates(name: str) -> bool:
    return not name.startswith(OF_ROLLOUTS) and name not in COUNTS


def _swept(name: str) -> str | None:
    """The title of an evaluation at one confidence threshold, or in one number of steps; None of other metrics. Their
    own charts show them."""
    plain = name.removeprefix("eval/")
    return frontier.titled(plain) or decoding.titled(plain) if name.startswith("eval/") else None


def _words(name: str) -> tuple[str, str]:
    title = _swept(name)
    if title is None:
        return name.replace("_", " ").replace("/", ": "), ""
    plain = name.removeprefix("eval/")
    return title, decoding.note_of(plain) if decoding.titled(plain) else SWEPT_NOTE


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
