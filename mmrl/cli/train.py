"""`mmrl train CONFIG [key=value ...]`."""

from __future__ import annotations

import typer

from mmrl.launched import is_main


def train(
    config: str = typer.Argument(..., help="YAML file, run folder, or name of a shipped configuration."),
    overrides: list[str] | None = typer.Argument(None, metavar="[KEY=VALUE]...", help="e.g. train.group=8"),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Show the resolved configuration, the group arithmetic and a memory estimate."
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on from the last checkpoint in the run folder."),
) -> None:
    """Train as a configuration says. Overrides are dotted keys."""
    from mmrl import config_io
    from mmrl.cli import plan

    resolved = config_io.resolve(config, overrides or [])
    if dry_run:
        if is_main():
            plan.show(resolved)
        return
    from mmrl.training.run import train as start

    folder = start(resolved, resume=resume)
    if not is_main():
        return
    typer.echo(f"run folder: {folder}")
    from mmrl.cli.tables import show_summary

    show_summary(folder)
    typer.echo(f"look at it: mmrl report {folder}; take the model out: mmrl export {folder} --out DIR")
