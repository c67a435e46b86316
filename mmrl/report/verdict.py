"""What the page says first: did it learn, by how much, against chance and controls? Loads no torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mmrl.report.compare import SHARES, Group, chance_of, pair, share_of_start, spread, title_of
from mmrl.report.runs import Run

LITTLE = 0.005  # smaller changes of a share are called none
CLEAR = 2.0  # a difference is called clear from this many standard errors on


@dataclass(frozen=True)
class Verdict:
    """One sentence in parts: `name: text`, and the change to be printed big. `tone`: up, down or nothing."""

    name: str
    change: str
    tone: str
    text: str


def verdicts(runs: Sequence[Run], grouped: Sequence[Group], metric: str) -> list[Verdict]:
    """One line a group on one metric, with what became of the diversity where that was measured; then each group that
    learns by reward against each control."""
    lines, gains = [], {}
    for group in grouped:
        found = [values for i in group.runs if (values := pair(runs[i], metric)) is not None]
        if not found:
            continue
        chance = chance_of([runs[i] for i in group.runs], metric)
        constant = "picture" if runs[group.runs[0]].draws else "answer"
        beyond = "" if chance is None else f"; the best constant {constant} reaches {chance:.3f}"
        gains[group] = [after - before for before, after in found]
        mean = statistics.fmean(gains[group])
        before, after = (spread(values) for values in zip(*found))
        many = f" over {len(found)} seeds" if len(found) > 1 else ""
        lines.append(
            Verdict(
                name=group.label if len(grouped) > 1 else "",
                change=spread(gains[group], sign="+"),
                tone=_tone(gains[group]),
                text=f"{title_of(metric)} {_went(mean)} {before} to {after}{many}{beyond}.{_kept(runs, group, metric)}",
            )
        )
    for group, own in gains.items():
        for control, theirs in gains.items():
            if _control(runs[group.runs[0]]) or not _control(runs[control.runs[0]]):
                continue
            lines.append(_against(group, own, control, theirs))
    return lines


def _kept(runs: Sequence[Run], group: Group, metric: str) -> str:
    """` Diversity is at 88 % of start.`, where a run says it."""
    told = ""
    for name in SHARES:
        found = [values for i in group.runs if (values := pair(runs[i], name)) is not None]
        if found and name != metric:
            told += f" {title_of(name)} is at {share_of_start(found)}."
    return told


def _went(mean: float) -> str:
    return "rose from" if mean > LITTLE else "fell from" if mean < -LITTLE else "hardly moved:"


def _control(run: Run) -> bool:
    """Shuffled rewards, or imitation where other runs learn by reward."""
    return run.summary.get("control") not in (None, "none") or run.summary.get("recipe") == "sft"


def _tone(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return "up" if mean > LITTLE else "down" if mean < -LITTLE else ""


def _against(group: Group, own: Sequence[float], control: Group, theirs: Sequence[float]) -> Verdict:
    difference = statistics.fmean(own) - statistics.fmean(theirs)
    tone = _tone([difference])
    gains = {"up": "gains more than", "down": "gains less than", "": "gains as much as"}[tone]
    text = f"{group.label} {gains} {control.label} does"
    sizes = f"n {len(own)} and {len(theirs)}"
    if len(own) > 1 and len(theirs) > 1:
        error = (statistics.variance(own) / len(own) + statistics.variance(theirs) / len(theirs)) ** 0.5
        text += f": {'beyond' if abs(difference) > CLEAR * error else 'within'} {CLEAR:g} standard errors ({sizes})."
    else:
        text += f" ({sizes}: too few seeds to tell it from noise)."
    return Verdict(name="Against the control", change=f"{difference:+.3f}", tone=tone, text=text)


def missing(runs: Sequence[Run], grouped: Sequence[Group]) -> str:
    """What would make the result easier to believe; nothing when it is all there."""
    if not any(run.summary.get("before") for run in runs):
        return ""
    wanted = []
    if all(len(group.runs) < 2 for group in grouped):
        wanted.append("another seed (seed=1)")
    if not any(_control(run) for run in runs):
        wanted.append("a control with shuffled rewards (train.control=shuffled)")
    if not wanted:
        return ""
    return f"To believe it, add {' and '.join(wanted)} and lay the runs over one another: mmrl report RUN RUN ..."
