"""Run folders read back for the report: summary, metrics, settings, signs of trouble. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl import json_io, yaml_io
from mmrl.errors import UserError

NAMED_STEPS = 8  # a warning that came more often is counted
SUMMARY_REMEDY = "delete it; `mmrl train RUN --resume` writes it again"
CONFIG_REMEDY = "mend it, or take it out of the folder"


@dataclass(frozen=True)
class Trouble:
    """Something that looked wrong from a step on, and the step it cleared at (None: it never did)."""

    run: int
    step: int
    until: int | None
    metric: str
    what: str
    advice: str


@dataclass
class Run:
    """What a run folder holds. `problems` collects what was wrong with reading it, and warnings without structure.

    settings   the resolved configuration by dotted key, on top of what the summary says of it
    draws      its samples are pictures that the model drew
    """

    path: Path
    label: str
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    draws: bool = False


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Raises UserError when a folder holds no run."""
    folders = [folder for path in paths for folder in parts_of(Path(path))]
    runs = [read_run(folder, number) for number, folder in enumerate(folders)]
    names = [run.label for run in runs]
    for run in runs:  # folders of the same name are told apart by their parent
        if names.count(run.label) > 1:
            run.label = "/".join(run.path.resolve().parts[-2:])
    return runs


def parts_of(path: Path) -> list[Path]:
    """The runs in a folder that holds several of one quickstart, as its summary.json names them; else the folder.

    Raises UserError when one of them is not there, or is not named by a plain folder name, and where the summary was
    never written: then it names the runs inside.
    """
    file = path / "summary.json"
    if (path / "metrics.jsonl").is_file():
        return [path]
    if not file.is_file():
        if inside := sorted(str(found.parent) for found in path.glob("*/metrics.jsonl")):
            raise UserError(
                f"{path}: no summary.json over the runs in it, it stopped before that was written; name the runs: "
                f"{' '.join(inside)}"
            )
        return [path]
    parts = read_summary(file).get("parts")
    if parts is None:
        return [path]
    if not isinstance(parts, list) or not parts or not all(_plain(name) for name in parts):
        raise UserError(f"{file}: parts must be names of folders beside it, got {parts!r}; run the quickstart again")
    for name in parts:
        if not (path / name).is_dir():
            raise UserError(f"{file}: its part {name!r} is missing; take a whole copy, or run the quickstart again")
    return [path / name for name in parts]


def _plain(name: object) -> bool:
    """The name of a folder, without a way elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def read_run(path: Path, number: int) -> Run:
    """A run folder as a `Run`; `number` is its place on the page. Raises UserError when it is none."""
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
    text = json_io.read_text(config, remedy=CONFIG_REMEDY) if config.is_file() else ""
    return Run(
        path=path,
        label=path.name or str(path.resolve().name),
        summary=summary,
        metrics=metrics,
        config=text,
        settings=_settings(text, summary, str(config), problems),
        troubles=troubles(metrics, number),
        problems=list(dict.fromkeys(problems)),
        draws=_draws(path),
    )


def _draws(run: Path) -> bool:
    """The first sample of the first step says so. What is wrong with the file is told where the samples are read."""
    file = next(iter(sorted((run / "samples").glob("step-*.jsonl"))), None)
    if file is None:
        return False
    with file.open(encoding="utf-8", errors="replace") as opened:
        try:
            row = json.loads(opened.readline() or "{}")
        except ValueError:
            return False
    return isinstance(row, dict) and row.get("drawn") is True


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


def troubles(metrics: Sequence[Mapping[str, Any]], run: int) -> list[Trouble]:
    """The signs in the log, each with the step it cleared at, in order of their beginning."""
    found: list[dict[str, Any]] = []
    for row in metrics:
        signs = row.get("signs")
        for sign in signs if isinstance(signs, list) else []:
            if not isinstance(sign, dict) or not isinstance(sign.get("step"), int):
                continue
            if sign.get("cleared"):
                for earlier in reversed(found):
                    if earlier.get("kind") == sign.get("kind") and earlier.get("until") is None:
                        earlier["until"] = sign["step"]
                        break
            else:
                found.append({**sign, "until": None})
    return [
        Trouble(run, s["step"], s["until"], *(str(s.get(key, "")) for key in ("metric", "what", "advice")))
        for s in found
    ]


def merged_warnings(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Warnings of older logs: one line a different one, with the steps it came at: `steps 3, 8 and 21: ...`."""
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


def _settings(text: str, summary: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    names = {"family": "family", "recipe": "recipe", "seed": "seed", "control": "train.control"}
    known = {name: summary[key] for key, name in names.items() if summary.get(key) is not None}
    if not text:
        return known
    try:
        value = yaml_io.parse(text, where)
    except UserError as error:  # the page can do without: it says so
        problems.append(f"{error}; its settings are not compared")
        return known
    return known | dict(flat(value)) if isinstance(value, dict) else known


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings by dotted key. An empty one is a value of its own."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
