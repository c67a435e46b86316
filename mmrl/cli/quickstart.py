"""`mmrl quickstart [FAMILY]`: the embedded model and data, minutes on two CPU cores."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer


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
    from mmrl import config_io, families
    from mmrl.cli.tables import show_summary

    families.family(family)
    folder = out or free_folder(Path("runs"), f"quickstart-{family}{f'-{control}' if control else ''}-seed{seed}")
    overrides = [f"seed={seed}"]
    if steps is not None:
        overrides.append(f"train.steps={steps}")
    if control is Control.shuffled:
        overrides.append("train.control=shuffled")
    if control is Control.supervised:
        # as many seconds a step as with rewards
        rewarded, module = config_io.resolve(f"quickstart/{family}").train, families.config_module(family)
        prompts = max(1, round(rewarded.prompts * rewarded.group / module.SAMPLES_A_DEMONSTRATION))
        overrides += ["recipe=sft", "recipe_options={}", "train.group=1", f"train.prompts={prompts}"]
        overrides += getattr(module, "QUICKSTART_DEMONSTRATIONS", [])
    config = config_io.resolve(f"quickstart/{family}", overrides)
    config.out = str(folder)
    from mmrl.report import write_report
    from mmrl.training.run import train

    run = train(config)
    page = run / "report.html"
    write_report([run], page)
    show_summary(run)
    typer.echo(f"run folder: {run}\nreport: {page} (open it in a browser)")


def free_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2`, -3, ... when it is taken: a second quickstart never overwrites the first."""
    folder, number = parent / name, 1
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = parent / f"{name}-{number}"
    return folder
