"""`mmrl data ...`: tools for data files. The tools of a family are reached by name when they are asked for."""

from __future__ import annotations

import importlib
from enum import StrEnum
from pathlib import Path

import typer

app = typer.Typer(help="Data files: published sets as JSONL, question-answer inversion.", no_args_is_help=True)


class Layout(StrEnum):
    """Published layouts that are read."""

    clevrer = "clevrer"
    nextgqa = "nextgqa"
    star = "star"
    mmvu = "mmvu"
    video_r1 = "video-r1"
    tw_grpo = "tw-grpo"


class Ask(StrEnum):
    """What the prompts of lettered questions ask for."""

    mixed = "mixed"
    single = "single"
    multiple = "multiple"
    none = "none"


class Rules(StrEnum):
    """Negation rules."""

    nextgqa = "nextgqa"
    star = "star"


@app.command("convert")
def convert(
    layout: Layout = typer.Argument(..., metavar="FORMAT", help=", ".join(Layout)),
    source: Path = typer.Argument(..., metavar="IN", help="The published file."),
    out: Path = typer.Argument(..., metavar="OUT", help="The JSONL file to write."),
    videos: Path | None = typer.Option(None, help="Folder of the videos; default the folder of IN."),
    ask: Ask = typer.Option(Ask.mixed, help="What prompts ask for: one letter, several, either, or nothing at all."),
    types: str | None = typer.Option(None, help="Only questions of these types, e.g. counterfactual or CW,CH."),
    task: str | None = typer.Option(None, help="nextgqa: choice (default) or grounding-time."),
    times: int | None = typer.Option(None, min=1, help="star: so many moments between start and end, for the model."),
    drop_missing: bool = typer.Option(False, "--drop-missing", help="Leave out records whose video is not there."),
) -> None:
    """A published set of questions about videos as JSONL that training reads."""
    module = importlib.import_module("video.data.convert")
    kinds = [word.strip() for word in types.split(",") if word.strip()] if types else []
    options = {"videos": videos, "ask": ask.value, "types": kinds, "drop_missing": drop_missing}
    for line in module.convert_file(layout.value, source, out, task=task, times=times, **options):
        typer.echo(line)


@app.command("invert-questions")
def invert_questions(
    source: Path = typer.Argument(..., metavar="IN", help="JSONL of questions with one right option."),
    out: Path = typer.Argument(..., metavar="OUT", help="The JSONL file to write; the report is written beside it."),
    rules: Rules = typer.Option(..., help="How questions are negated: nextgqa or star."),
    share: float = typer.Option(0.5, min=0.0, max=1.0, help="Share of the questions that are drawn to be inverted."),
    seed: int = typer.Option(0, help="With a record's id it decides what becomes of the record."),
) -> None:
    """Negate questions so that all options but the right one become right; skip those that no rule can negate."""
    module = importlib.import_module("video.data.invert_file")
    report = module.invert_file(source, out, rules=rules.value, share=share, seed=seed)
    for line in report.lines():
        typer.echo(line)
    typer.echo(f"written: {out}, {module.report_path(out)}")
