"""Several runs beside one another: groups of seeds, settings that differ, metrics before and after. Loads no torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from mmrl.report import decoding, frontier
from mmrl.report.runs import Run

#: What may differ between runs of one group: the seed, and where and how they were carried out and watched.
UNGROUPED = ("seed", "out", "device", "threads", "log.", "checkpoint.", "eval.samples")
#: What the table of settings leaves out.
UNINTERESTING = ("out", "log.project")
TITLES = {
    "mean_iou": "Mean IoU",
    "acc_50": "Accuracy at IoU 0.5",
    "accuracy": "Held-out accuracy",
    "tpf": "Tokens per forward",
    "aup": "AUP (accuracy under parallelism)",
    "judge": "Judge",
    "reward": "Reward",
    "diversity": "Diversity",
    "finished": "Finished answers",
}
#: Neither better nor worse when they rise or fall: told as a share of the start's.
SHARES = ("diversity",)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    label: str
    runs: tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    key: str
    values: list[str]  # one a run


@dataclass(frozen=True)
class Change:
    """A metric of one run before and after; positions on a 0..100 track for the little picture."""

    run: int
    before: str
    after: str
    change: str
    verdict: str  # up, down or nothing
    track: tuple[float, float] | None
    against_first: str  # after, minus the first run's after; nothing for the first run itself


@dataclass(frozen=True)
class Mean:
    """A metric over the seeds of one group: `mean ± deviation`."""

    group: int
    after: str
    change: str
    n: int


@dataclass(frozen=True)
class Metric:
    name: str
    title: str
    chance: str
    chance_at: float | None
    changes: list[Change]
    means: list[Mean]

    def of(self, run: int) -> Change | None:
        return next((c for c in self.changes if c.run == run), None)

    def mean_of(self, group: int) -> Mean | None:
        return next((m for m in self.means if m.group == group), None)


def groups(runs: Sequence[Run]) -> list[Group]:
    """In the order of their first run. Labels are told apart by the settings that differ."""
    found: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        kept = {key: value for key, value in run.settings.items() if not key.startswith(UNGROUPED)}
        found.setdefault(repr(sorted(kept.items())), []).append(i)
    labels = [method(runs[members[0]].summary) or runs[members[0]].label for members in found.values()]
    firsts = [runs[members[0]] for members in found.values()]
    out = []
    for label, members in zip(labels, found.values()):
        if labels.count(label) > 1:
            alike = [first for other, first in zip(labels, firsts) if other == label]
            label = f"{label}, {_apart(alike, alike.index(runs[members[0]]))}"
        out.append(Group(label, tuple(members)))
    return out


def _apart(runs: Sequence[Run], at: int) -> str:
    """What tells the run from others of its method: the first setting that no two of them share, else its folder."""
    for setting in differing(runs):
        if not setting.key.startswith(UNGROUPED) and len(set(setting.values)) == len(runs):
            return f"{setting.key} {setting.values[at]}"
    return runs[at].label


def method(summary: Mapping[str, Any]) -> str:
    """`visual-rft`, `visual-rft, shuffled rewards`."""
    parts = [str(summary["recipe"])] if summary.get("recipe") else []
    if summary.get("control") not in (None, "none"):
        parts.append(f"{summary['control']} rewards")
    return ", ".join(parts)


def differing(runs: Sequence[Run]) -> list[Setting]:
    """Settings whose values are not the same in all runs, in the order of the first run that has them."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in UNINTERESTING)
    table = [Setting(key, [_text(run.settings, key) for run in runs]) for key in keys]
    table = [setting for setting in table if not set(setting.values) <= {"–", "{}", "[]"}]
    return [setting for setting in table if len(set(setting.values)) > 1]


def _text(settings: Mapping[str, Any], key: str) -> str:
    if key not in settings:
        return "–"
    value = settings[key]
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def metrics(runs: Sequence[Run], grouped: Sequence[Group]) -> list[Metric]:
    """Every metric measured before and after in at least one run. The one that chose the best checkpoint comes first,
    then the known ones, then the rest in the order of the first summary that has them. Those at one confidence
    threshold or one number of steps have charts of their own (`frontier`, `decoding`)."""
    decides = next((str(run.settings["eval.metric"]) for run in runs if run.settings.get("eval.metric")), "")
    elsewhere = frontier.folded(runs)
    names: dict[str, None] = {}
    for run in runs:
        for name, value in (run.summary.get("before") or {}).items():
            if name != decides and (name in elsewhere or decoding.is_drawn(name)):
                continue
            if is_number(value) and is_number((run.summary.get("after") or {}).get(name)):
                names.setdefault(name)
    rank = {decides: -1} | {name: i for i, name in enumerate(TITLES) if name != decides}
    return [_metric(name, runs, grouped) for name in sorted(names, key=lambda name: rank.get(name, len(rank)))]


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def pair(run: Run, name: str) -> tuple[float, float] | None:
    """(before, after) of a metric, if both were measured."""
    before, after = ((run.summary.get(key) or {}).get(name) for key in ("before", "after"))
    return (before, after) if is_number(before) and is_number(after) else None


def chance_of(runs: Sequence[Run], name: str) -> float | None:
    levels = [(run.summary.get("chance") or {}).get(name) for run in runs]
    return next((level for level in levels if is_number(level)), None)


def title_of(name: str) -> str:
    return (
        TITLES.get(name)
        or frontier.titled(name)
        or decoding.titled(name)
        or name.replace("_", " ").replace("/", ": ").capitalize()
    )


def share_of_start(values: Sequence[tuple[float, float]]) -> str:
    """After as a share of before, over (before, after) pairs: `88 % of start`, `88 ± 3 % of start` over several."""
    shares = [100 * after / before for before, after in values if before]
    if not shares:
        return "–"
    deviation = f" ± {statistics.stdev(shares):.0f}" if len(set(shares)) > 1 else ""
    return f"{statistics.fmean(shares):.0f}{deviation} % of start"


def _metric(name: str, runs: Sequence[Run], grouped: Sequence[Group]) -> Metric:
    found = {i: values for i, run in enumerate(runs) if (values := pair(run, name)) is not None}
    chance = chance_of(runs, name)
    top = max([1.0, chance or 0.0, *(abs(v) for values in found.values() for v in values)])
    shown = all(v >= 0 for values in found.values() for v in values)
    reference = found[0][1] if 0 in found and len(runs) > 1 else None
    changes = [
        Change(
            run=i,
            before=f"{b:.3f}",
            after=f"{a:.3f}",
            change=share_of_start([(b, a)]) if name in SHARES else f"{a - b:+.3f}",
            verdict="" if name in SHARES else "up" if a > b else "down" if a < b else "",
            track=(100 * b / top, 100 * a / top) if shown else None,
            against_first="" if i == 0 or reference is None else f"{a - reference:+.3f}",
        )
        for i, (b, a) in found.items()
    ]
    means = []
    for g, group in enumerate(grouped):
        own = [found[i] for i in group.runs if i in found]
        if len(own) > 1:
            moved = share_of_start(own) if name in SHARES else "change " + spread([a - b for b, a in own], sign="+")
            means.append(Mean(g, spread([a for _, a in own]), moved, len(own)))
    return Metric(
        name=name,
        title=title_of(name),
        chance="–" if chance is None else f"{chance:.3f}",
        chance_at=None if chance is None or not shown else 100 * chance / top,
        changes=changes,
        means=means,
    )


def spread(values: Sequence[float], sign: str = "") -> str:
    """`mean ± standard deviation`; the mean alone of a single value, or of equal ones (one start for all seeds)."""
    mean = f"{statistics.fmean(values):{sign}.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(set(values)) > 1 else mean
