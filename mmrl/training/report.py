"""`report.html`: one self-contained page about one run, or about several laid over one another. Loads no torch.

Model output is untrusted text: every value goes through jinja's autoescape, and the page forbids itself to load
anything from elsewhere.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl import json_io
from mmrl.errors import UserError
from mmrl.training import report_charts, report_gallery
from mmrl.training.report_charts import number


@dataclass
class Run:
    """What a run folder holds. `problems` collects warnings of the run and of reading it."""

    path: Path
    label: str
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    config: str
    gallery: list[report_gallery.Pair] = field(default_factory=list)
    rollouts: tuple[int, list[report_gallery.Rollout]] = (0, [])
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """A metric of one run before and after; positions on a 0..100 track for the little picture."""

    run: int
    before: str
    after: str
    change: str
    verdict: str  # up, down or nothing
    track: tuple[float, float] | None


@dataclass(frozen=True)
class Metric:
    name: str
    title: str
    chance: str
    chance_at: float | None
    changes: list[Change]
    mean: str


TITLES = {"mean_iou": "Mean IoU", "acc_50": "Accuracy at IoU 0.5", "reward": "Reward"}
HEADLINES = 3
NAMED_STEPS = 8  # a warning that came more often is counted
SUMMARY_REMEDY = "delete it; `mmrl train RUN --resume` writes it again"


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page of one or several run folders to `out` and return its path. Raises UserError."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not runs:
        raise UserError("report: name at least one run folder")
    read = [read_run(Path(path)) for path in runs]
    name_apart(read)
    curves = report_charts.charts([run.metrics for run in read])
    environment = Environment(
        loader=PackageLoader("mmrl.training", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        runs=read,
        metrics=headline(read),
        headlines=HEADLINES,
        main=curves[: report_charts.MAIN],
        rest=curves[report_charts.MAIN :],
        chart=report_charts,
        describe=describe,
        dumps=lambda value: json.dumps(value, separators=(",", ":")),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def read_run(path: Path) -> Run:
    """A run folder as a `Run`. Raises UserError when it is none."""
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder")
    if not (path / "metrics.jsonl").is_file() and not (path / "summary.json").is_file():
        raise UserError(f"{path}: neither metrics.jsonl nor summary.json in it; give a folder written by mmrl train")
    problems: list[str] = []
    summary: dict[str, Any] = {}
    if (path / "summary.json").is_file():
        summary = read_summary(path / "summary.json")
    else:
        problems.append("no summary.json yet: the run has not finished")
    metrics = read_metrics(path / "metrics.jsonl", problems)
    problems += [str(warning) for warning in summary.get("warnings") or []]
    problems += merged_warnings(metrics)
    config = path / "config.yaml"
    return Run(
        path=path,
        label=path.name or str(path.resolve().name),
        summary=summary,
        metrics=metrics,
        config=json_io.read_text(config, remedy="mend it, or take it out of the folder") if config.is_file() else "",
        gallery=report_gallery.pairs(path, problems),
        rollouts=report_gallery.rollouts(path),
        problems=list(dict.fromkeys(problems)),
    )


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json. Raises UserError when it is broken."""
    summary = json_io.read_object(path, remedy=SUMMARY_REMEDY)
    for key in ("before", "after", "chance"):
        if not isinstance(summary.get(key) or {}, dict):
            raise UserError(f"{path}: {key} must hold `metric: value` pairs, got {summary[key]!r}; {SUMMARY_REMEDY}")
    return summary


def read_metrics(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. A last line cut off by a crash is named in `problems`; other broken lines raise."""
    if not path.is_file():
        return []
    return json_io.read_lines(path, remedy="delete that line", cut=problems)


def merged_warnings(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a different warning, with the steps it came at: `steps 3, 8 and 21: ...`."""
    steps: dict[str, list[str]] = {}
    for row in metrics:
        for warning in row.get("warnings") or []:
            steps.setdefault(str(warning), []).append(str(row.get("step")))
    return [f"{at_steps(found)}: {warning}" for warning, found in steps.items()]


def at_steps(steps: Sequence[str]) -> str:
    """`step 3`, `steps 3 and 8`; of many the first ones, their number and the last."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    if len(steps) <= NAMED_STEPS:
        return f"steps {', '.join(steps[:-1])} and {steps[-1]}"
    return f"{len(steps)} steps ({', '.join(steps[: NAMED_STEPS - 2])}, ..., {steps[-1]})"


def name_apart(runs: Sequence[Run]) -> None:
    """Folders of the same name are told apart by their parent."""
    names = [run.label for run in runs]
    for run in runs:
        if names.count(run.label) > 1:
            run.label = "/".join(run.path.resolve().parts[-2:])


def headline(runs: Sequence[Run]) -> list[Metric]:
    """Every metric measured before and after in at least one run, in the order of the first summary that has it."""
    names: dict[str, None] = {}
    for run in runs:
        for name, value in (run.summary.get("before") or {}).items():
            if isinstance(value, int | float):
                names.setdefault(name)
    ordered = sorted(names, key=lambda name: list(TITLES).index(name) if name in TITLES else len(TITLES))
    return [_metric(name, runs) for name in ordered]


def _metric(name: str, runs: Sequence[Run]) -> Metric:
    found: list[tuple[int, float, float]] = []
    chance: float | None = None
    for i, run in enumerate(runs):
        before, after = (run.summary.get(key, {}).get(name) for key in ("before", "after"))
        level = (run.summary.get("chance") or {}).get(name)
        chance = level if chance is None else chance
        if isinstance(before, int | float) and isinstance(after, int | float):
            found.append((i, before, after))
    top = max([1.0, chance or 0.0, *(abs(v) for _, b, a in found for v in (b, a))])
    shown = all(v >= 0 for _, b, a in found for v in (b, a))
    gains = [after - before for _, before, after in found]
    mean = ""
    kinds = {(runs[i].summary.get("recipe"), runs[i].summary.get("control")) for i, _, _ in found}
    if len(gains) > 1 and len(kinds) == 1:  # a mean over different methods says nothing
        mean = f"{statistics.mean(gains):+.3f} ± {statistics.stdev(gains):.3f}"
    return Metric(
        name=name,
        title=TITLES.get(name, name.replace("_", " ").capitalize()),
        chance="–" if chance is None else number(round(chance, 3)),
        chance_at=None if chance is None or not shown else 100 * chance / top,
        changes=[
            Change(
                run=i,
                before=f"{b:.3f}",
                after=f"{a:.3f}",
                change=f"{a - b:+.3f}",
                verdict="up" if a > b else "down" if a < b else "",
                track=(100 * b / top, 100 * a / top) if shown else None,
            )
            for i, b, a in found
        ],
        mean=mean,
    )


def describe(summary: Mapping[str, Any]) -> str:
    """`vlm, visual-rft, seed 0, 300 steps in 212 s`, as far as it is known."""
    parts = [str(summary[key]) for key in ("family", "recipe") if summary.get(key)]
    if summary.get("control") not in (None, "none"):
        parts.append(f"control: {summary['control']} rewards")
    if summary.get("seed") is not None:
        parts.append(f"seed {summary['seed']}")
    if summary.get("steps") is not None:
        parts.append(f"{summary['steps']} steps")
    if isinstance(summary.get("seconds"), int | float):
        parts.append(f"{summary['seconds']:.0f} s")
    return ", ".join(parts)
