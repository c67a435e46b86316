"""`mmrl check-data FILE` and `mmrl check-reward MODULE:FUNCTION`: find mistakes before a run does."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mmrl.errors import UserError

if TYPE_CHECKING:
    from mmrl.config import Config
    from mmrl.data.records import Record


class Require(StrEnum):
    """What each record must have besides its prompt."""

    answer = "answer"
    response = "response"
    prompt = "prompt"


def check_data(
    file: Path = typer.Argument(..., help="JSONL, JSON, table of records, or text file of prompts."),
    require: Require | None = typer.Option(
        None,
        help="answer: for rewards (default); response: for the recipe sft; prompt: nothing more (default for .txt).",
    ),
) -> None:
    """Read every record, decode every picture and the frames of every video, list all problems."""
    from mmrl.data.check import check_file

    report = check_file(file, require=None if require is None else require.value, further=_look_at_videos)
    for line in report.lines:
        typer.echo(line)
    if report.n_bad:
        total = report.n_bad + report.n_ok
        raise UserError(f"{file}: {report.n_bad} of {total} records are bad, listed above; mend or remove them")


def _look_at_videos(record: Record) -> None:
    """As a run with the default inputs would read them."""
    if record.videos:
        from mmrl import families

        families.entry("video").look(record, None, whole=True)


def check_reward(
    target: str = typer.Argument(..., metavar="MODULE:FUNCTION", help="A reward that can be imported from here."),
    data: Path | None = typer.Option(None, help="Check on the first records of this file; default made-up ones."),
    count: int = typer.Option(8, min=1, help="How many records of --data."),
    option: list[str] | None = typer.Option(
        None, "--option", metavar="KEY=VALUE", help="An option of the reward; may be given several times."
    ),
) -> None:
    """Call a reward on difficult outputs and report what breaks the contract."""
    from mmrl.rewards.checker import check_reward as check

    records = None
    if data is not None:
        from mmrl.data.read import read_records

        records = read_records(data)[0][:count]
    checked = check(target, records=records, options=options_of(option or []))
    for line in checked.lines:
        typer.echo(line)
    if checked.problems:
        raise UserError(f"{target}: breaks the contract of a reward in {len(checked.problems)} ways, listed above")


def options_of(pairs: list[str]) -> dict[str, Any]:
    """`["divisor=union", "limit=3"]` as a dictionary; values are read as YAML, as in a configuration."""
    from mmrl import yaml_io

    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.strip():
            raise UserError(f"--option {pair}: write it as key=value, e.g. --option limit=3")
        if key.strip() in options:
            raise UserError(f"--option {key.strip()}: given twice; keep one")
        options[key.strip()] = yaml_io.parse(text, f"--option {key.strip()}")
    return options


def data_problems(source: str, config: Config) -> list[str]:
    """Problems of one `data` entry of a configuration: an embedded set or a file."""
    from mmrl import config_io, families
    from mmrl.data.check import check_file
    from mmrl.training.setup import needed, picture_limits

    imitates = config_io.recipe_of(config).experience == "records"
    try:
        if not Path(source).exists():
            families.entry(config.family).builtin(source)
            return []
        own = getattr(families.entry(config.family), "look", None)
        further = None if own is None else partial(own, config=config, whole=True)
        require = needed(config, imitation=imitates)
        return check_file(Path(source), require=require, further=further, **picture_limits(config)).problems
    except UserError as error:
        return [str(error)]
