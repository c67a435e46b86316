"""`mmrl report RUN [RUN ...]`. Loads no torch."""

from __future__ import annotations

from pathlib import Path

import typer


def report(
    runs: list[Path] = typer.Argument(..., help="Run folders; several are laid over one another."),
    out: Path | None = typer.Option(
        None, help="HTML file; default report.html in the run folder, or beside the first of several."
    ),
) -> None:
    """Write one self-contained HTML page: did it learn, signs of trouble, curves, samples, run against run."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mmrl.report import verdict_lines, write_report

    page = write_report(runs, out or (runs[0] if len(runs) == 1 else runs[0].resolve().parent) / "report.html")
    table = Table.grid(padding=(0, 2, 0, 0))
    for change, text in verdict_lines(runs):
        table.add_row(Text(change, no_wrap=True), Text(text))
    Console(highlight=False).print(table)
    typer.echo(f"report: {page} (open it in a browser)")
