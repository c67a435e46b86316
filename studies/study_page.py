"""The results as Markdown, and their place between two markers of a document."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

from mmrl.errors import UserError

Results = dict[str, Any]
#: Processor time a second, relative to the main arm of the same seeds, that is spoken of.
LOAD_DIFFERS = 0.1


def block(results: Results, *, figure: str | None) -> str:
    """Markdown of a study. `figure`: link to the picture, relative to the document."""
    main = next(iter(results["arms"].values()))["label"]
    n = len(results["seeds"])
    parts = [
        f"## {results['title']}",
        f"    {results['command']}",
        wrapped(
            f"{n} seed{'s' * (n > 1)} ({', '.join(map(str, results['seeds']))}), `{results['config']}`. Gains are "
            "means over the seeds with their standard deviation and range, after the last step of each run. "
            f"*{main} ahead* is the difference of gains, by seed, with its 95 % interval (Student's t)."
        ),
    ]
    if figure:
        parts.append(f"![{results['metrics'][0]} while training]({figure})")
    parts += [_metric(results, metric, main) for metric in results["metrics"]]
    parts += [_bound(results, b) for b in results["bounds"]]
    parts += [_cost(results), _notes(results)]
    return "\n\n".join(parts)


def _metric(results: Results, metric: str, main: str) -> str:
    rows = [
        f"| {metric} | n | before | after | gain | from .. to | {main} ahead |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in results["arms"].values():
        found = arm["metrics"][metric]
        gain, behind = found["gain"], found.get("behind_main")
        rows.append(
            f"| {arm['label']} | {gain['n']} | {found['before']['mean']:.3f} | {found['after']['mean']:.3f} | "
            f"{with_std(gain, '+.3f')} | {gain['min']:+.3f} .. {gain['max']:+.3f} | {interval(behind)} |"
        )
    start = next(iter(results["arms"].values()))["metrics"][metric]["before"]["mean"]
    rows.append(f"| starting checkpoint | | {start:.3f} | | | | |")
    if metric in results["chance"]:
        rows.append(f"| best constant answer | | {results['chance'][metric]:.3f} | | | | |")
    return "\n".join(rows)


def _bound(results: Results, bound: dict[str, Any]) -> str:
    label = results["arms"][bound["arm"]]["label"]
    verdict = "the bound holds" if bound["holds"] else "**the bound is broken**"
    metric = bound.get("metric", results["metrics"][0])
    asked = f"at least {bound['least_gain']:+.2f}" if "least_gain" in bound else f"at most {bound['most_gain']:+.2f}"
    verb = "is to be" if "least_gain" in bound else "may be"
    return f"Bound: the mean gain of {metric} of *{label}* {verb} {asked}; it is {bound['mean_gain']:+.3f}, {verdict}."


def _cost(results: Results) -> str:
    rows = ["| run | steps | seconds of training | processor seconds |", "|---|---|---|---|"]
    for arm in results["arms"].values():
        rows.append(
            f"| {arm['label']} | {with_std(arm['steps'], '.0f')} | {with_std(arm['seconds'], '.1f')} | "
            f"{with_std(arm['seconds_cpu'], '.1f')} |"
        )
    return "\n".join(rows)


def _notes(results: Results) -> str:
    jobs = " or ".join(map(str, results["jobs"]))
    cores = results["machine"]["cores"]
    lines = [f"{a['label']}: {a['note']}." for a in results["arms"].values() if a["note"]]
    lines.append(
        "Equal seconds: of each seed the first run takes its steps, and the others then get the training seconds that "
        "it took (evaluation and saving apart). Runs of a seed follow each other, so that they meet the same load; up "
        f"to {jobs} seed{'s' * (jobs != '1')} ran at once on {cores} cores. Processor seconds do not count waiting: "
        "where they differ between runs of equal seconds, something else took part of the machine."
    )
    for arm in results["arms"].values():
        if abs(arm["load"] - 1) > LOAD_DIFFERS:
            lines.append(
                f"{arm['label']}: had {arm['load']:.2f} times the processor seconds in equal seconds; the machine was "
                "not quiet, and its comparison is worth less."
            )
    lines.append("Versions: " + ", ".join(f"{k} {v}" for k, v in results["versions"].items()) + ".")
    return "\n".join(wrapped(f"- {line}", indent="  ") for line in lines)


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def with_std(found: dict[str, Any], form: str) -> str:
    """`+0.148 (0.030)`; without a spread when there is one seed."""
    std = f" ({found['std']:{form.replace('+', '')}})" if found["std"] is not None else ""
    return f"{found['mean']:{form}}{std}"


def interval(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "low" not in found:
        return f"{found['mean']:+.3f}"
    return f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def place(document: Path, slug: str, text: str) -> None:
    """Put the text between the study's two markers; all else of the document stays. Raises UserError without them."""
    begin, end = f"<!-- begin {slug}: written by make prove -->", f"<!-- end {slug} -->"
    whole = document.read_text(encoding="utf-8")
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(begin) > whole.index(end):
        raise UserError(f"{document}: needs the two lines {begin!r} and {end!r}, once each and in this order")
    inside = f"{begin}\n{text}\n{end}"
    document.write_text(
        re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: inside, whole, flags=re.S), encoding="utf-8"
    )
