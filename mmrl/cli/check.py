"""`mmrl check-data FILE` and `mmrl check-reward MODULE:FUNCTION`: find mistakes before a run does."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mmrl.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mmrl.config import Config
    from mmrl.data.check import Report
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
    config: str | None = typer.Option(
        None, "--config", help="Check as a run of this configuration reads: its inputs, limits, rewards, and recipe."
    ),
) -> None:
    """Read every record, decode every picture and the frames of every video, list all problems."""
    report, settings = _by_defaults(file, require) if config is None else _as_configured(file, require, config)
    for line in [*report.lines, *settings]:
        typer.echo(line)
    if report.n_bad:
        total = report.n_bad + report.n_ok
        raise UserError(f"{file}: {report.n_bad} of {total} records are bad, listed above; mend or remove them")


def _by_defaults(file: Path, require: Require | None) -> tuple[Report, list[str]]:
    """(what a run with the default inputs would find, which those are where they matter)."""
    from mmrl import families
    from mmrl.data.check import check_file

    seen = False

    def look_at_videos(record: Record) -> None:
        nonlocal seen
        if record.videos:
            seen = True
            families.entry("video").look(record, None, whole=True)

    report = check_file(file, require=None if require is None else require.value, further=look_at_videos)
    if not seen:
        return report, []
    defaults = families.config_module("video").Inputs()
    return report, [f"videos read with the default inputs; --config CONFIG takes those of a run: {_told(defaults)}"]


def _as_configured(file: Path, require: Require | None, name: str) -> tuple[Report, list[str]]:
    """(what a run of the configuration would find, its inputs)."""
    from mmrl import config_io
    from mmrl.training.setup import check_family, load_extensions

    config = config_io.resolve(name)
    load_extensions(config)
    check_family(config)
    report = _as_read(file, config, require)
    return report, [f"read as {name} says, family {config.family}, recipe {config.recipe}: {_told(config.inputs)}"]


def _as_read(file: Path, config: Config, require: Require | None = None) -> Report:
    """What a run of the configuration would find in a file."""
    from mmrl import config_io
    from mmrl.data.check import check_file
    from mmrl.training.setup import look_of, needed, picture_limits

    imitates = config_io.recipe_of(config).experience == "records" if require is None else require is Require.response
    wanted = needed(config, imitation=imitates) if require is None else require.value
    further = look_of(config, whole=True, rewarded=not imitates)
    return check_file(file, require=wanted, further=further, **picture_limits(config))


def _told(inputs: BaseModel) -> str:
    values = inputs.model_dump().items()
    return ", ".join(f"inputs.{key} {'none' if value is None else value}" for key, value in values) or "no inputs"


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
    from mmrl import families

    try:
        if not Path(source).exists():
            families.entry(config.family).builtin(source)
            return []
        return _as_read(Path(source), config).problems
    except UserError as error:
        return [str(error)]
