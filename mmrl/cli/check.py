"""`mmrl check-data FILE` and `mmrl check-reward MODULE:FUNCTION`: find mistakes before a run does."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mmrl.errors import UserError

if TYPE_CHECKING:
    from mmrl.config import Config


class Require(StrEnum):
    """What each record must have besides its prompt."""

    answer = "answer"
    response = "response"


def check_data(
    file: Path = typer.Argument(..., help="JSONL, JSON or table of records."),
    require: Require = typer.Option(Require.answer, help="answer: for rewards; response: for the recipe sft."),
) -> None:
    """Read every record, decode every picture, list all problems."""
    from mmrl.data.check import check_file

    report = check_file(file, require=require.value)
    for line in report.lines:
        typer.echo(line)
    if report.n_bad or not report.n_ok:
        raise typer.Exit(2)


def check_reward(
    target: str = typer.Argument(..., metavar="MODULE:FUNCTION", help="A reward that can be imported from here."),
    data: Path | None = typer.Option(None, help="Check on the first records of this file; default made-up ones."),
    count: int = typer.Option(8, min=1, help="How many records of --data."),
) -> None:
    """Call a reward on difficult outputs and report what breaks the contract."""
    from mmrl.rewards.checker import check_reward as check

    records = None
    if data is not None:
        from mmrl.data.read import read_records

        records = read_records(data)[0][:count]
    checked = check(target, records=records)
    for line in checked.lines:
        typer.echo(line)
    if checked.problems:
        raise typer.Exit(2)


def data_problems(source: str, config: Config) -> list[str]:
    """Problems of one `data` entry of a configuration: an embedded set or a file."""
    from mmrl import config_io, families
    from mmrl.data.check import check_file

    imitates = config_io.recipe_of(config).experience == "records"
    try:
        if not Path(source).is_file():
            families.entry(config.family).builtin(source)
            return []
        limits = {}
        if hasattr(config.inputs, "max_image_side"):
            limits = {"max_side": config.inputs.max_image_side, "max_pixels": config.inputs.max_image_pixels}
        return check_file(source, require="response" if imitates else "answer", **limits).problems
    except UserError as error:
        return [str(error)]
