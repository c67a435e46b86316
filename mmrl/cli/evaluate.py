"""`mmrl eval CHECKPOINT`."""

from __future__ import annotations

from pathlib import Path

import typer


def evaluate(
    checkpoint: Path = typer.Argument(..., help="Run folder (its best), step folder or exported folder."),
    config: str | None = typer.Option(None, "--config", help="Configuration; default the run's own."),
    base: str | None = typer.Option(None, "--base", help="Base model of an adapter, where it is not found."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Greedy metrics of a checkpoint on the held-out records."""
    from mmrl.cli.checkpoints import require_checkpoint
    from mmrl.paths import find_config

    folder = require_checkpoint(checkpoint)
    file = None if config is None else find_config(config)
    from mmrl.training.stored import evaluate_run

    metrics = evaluate_run(folder, file, base=base, tell=lambda line: typer.echo(line, err=True))
    if as_json:
        import json

        typer.echo(json.dumps(metrics, indent=2))
        return
    width = max(len(name) for name in metrics)
    for name, value in metrics.items():
        typer.echo(f"{name:<{width}}  {value:.4f}" if isinstance(value, float) else f"{name:<{width}}  {value}")
