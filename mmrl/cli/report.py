"""`mmrl report RUN [RUN ...]`. Loads no torch."""

from __future__ import annotations

from pathlib import Path

import typer


def report(
    runs: list[Path] = typer.Argument(..., help="Run folders; several are laid over one another."),
    out: Path | None = typer.Option(None, help="HTML file; default report.html in the first run folder."),
) -> None:
    """Write one self-contained HTML page: curves, samples with boxes, before and after."""
    from mmrl.training.report import write_report

    page = write_report(runs, out or runs[0] / "report.html")
    typer.echo(f"report: {page}")
