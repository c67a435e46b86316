"""`mmrl quickstart [FAMILY]`: the embedded models and data, minutes on two CPU cores."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mmrl.config import Config


class Control(StrEnum):
    """Runs that show what the reward contributes."""

    shuffled = "shuffled"
    supervised = "supervised"


def quickstart(
    family: str = typer.Argument("vlm", help="Which model family to show."),
    out: Path | None = typer.Option(None, help="Run folder; default runs/quickstart-FAMILY-seedN."),
    steps: int | None = typer.Option(None, min=0, help="Training steps; default from the configuration."),
    seed: int = typer.Option(0, min=0, max=2**63 - 1, help="Random seed."),
    control: Control | None = typer.Option(
        None, help="shuffled: rewards permuted inside each group; supervised: imitation instead of reward."
    ),
) -> None:
    """Train an embedded small model by reward and show it before and after."""
    from mmrl import families
    from mmrl.report import write_report
    from mmrl.training.run import train
    from mmrl.training.summaries import write_joined

    module = families.config_module(family)
    folder = out or free_folder(Path("runs"), f"quickstart-{family}{f'-{control}' if control else ''}-seed{seed}")
    #: A family with several models shows one after the other, each in a folder of its own below.
    parts: dict[str, str] = getattr(module, "QUICKSTART", {"": f"quickstart/{family}"})
    runs = {}
    for name, path in parts.items():
        config = _configured(family, path, control, seed, steps)
        config.out = str(folder / name)
        if name:
            typer.echo(f"{name}: {config.recipe}")
        runs[name] = train(config)
        _show(runs[name])
    page = folder / "report.html"
    if list(parts) != [""]:
        write_joined(folder, runs, families.entry(family).joined)
        write_report(list(runs.values()), page)
        typer.echo(f"run folder: {folder}\nreport: {page} (open it in a browser)")


def _configured(family: str, path: str, control: Control | None, seed: int, steps: int | None) -> Config:
    from mmrl import config_io, families

    overrides = [f"seed={seed}"]
    if steps is not None:
        overrides.append(f"train.steps={steps}")
    if control is Control.shuffled:
        overrides.append("train.control=shuffled")
    if control is Control.supervised:
        # as many seconds a step as with rewards
        rewarded, module = config_io.resolve(path).train, families.config_module(family)
        prompts = max(1, round(rewarded.prompts * rewarded.group / module.SAMPLES_A_DEMONSTRATION))
        overrides += ["recipe=sft", "recipe_options={}", "train.group=1", f"train.prompts={prompts}"]
        overrides += getattr(module, "QUICKSTART_DEMONSTRATIONS", [])
    return config_io.resolve(path, overrides)


def _show(run: Path) -> None:
    from mmrl.cli.tables import show_summary, show_trajectory
    from mmrl.report import write_report

    page = run / "report.html"
    write_report([run], page)
    show_summary(run)
    show_trajectory(run)
    typer.echo(f"run folder: {run}\nreport: {page} (open it in a browser)")


def free_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2`, -3, ... when it is taken: a second quickstart never overwrites the first."""
    folder, number = parent / name, 1
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = parent / f"{name}-{number}"
    return folder
