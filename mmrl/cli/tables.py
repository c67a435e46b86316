"""Before/after tables in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl.errors import UserError
from mmrl.report import decoding
from mmrl.report.frontier import HALVES, curve


def read_summary(run: Path) -> dict[str, Any]:
    """`summary.json` of a run folder. Raises UserError when it is not there."""
    from mmrl import report

    path = run / "summary.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; is {run} a finished run folder?")
    return report.read_summary(path)


def number(value: Any, digits: int = 3) -> str:
    """A metric as text; a dash where there is none."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"


def metric_rows(summary: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(metric, chance, before, after, change) for every metric that was measured before and after."""
    before, after, chance = (summary.get(key) or {} for key in ("before", "after", "chance"))
    drawn = {f"{half}@{point.threshold}" for point in curve(after) for half in HALVES}  # a table of their own
    rows = []
    for name, value in before.items():
        if not isinstance(value, int | float) or not isinstance(after.get(name), int | float) or name in drawn:
            continue
        if name == decoding.REACHED or decoding.titled(name) is not None:  # they too
            continue
        change = f"{after[name] - value:+.3f}"
        rows.append((name, number(chance.get(name)), number(value), number(after[name]), change))
    return rows


def show_summary(run: Path) -> None:
    """Print the before/after table of a run."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    summary = read_summary(run)
    title = f"{summary.get('family')} / {summary.get('recipe')}, seed {summary.get('seed')}"
    table = Table(
        title=f"{title}: {summary.get('steps')} steps in {number(summary.get('seconds'), 0)} s",
        box=box.SIMPLE_HEAD,
        caption="chance = the best constant answer",
    )
    table.add_column("metric")
    for name in ("chance", "before", "after", "change"):
        table.add_column(name, justify="right")
    for row in metric_rows(summary):
        table.add_row(*row)
    Console().print(table)
    if rows := curve_rows(summary):
        _show_curve(rows)
    if steps := steps_rows(summary):
        _show_steps(steps, decoding.reached(summary))


def curve_rows(summary: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(threshold, tokens per forward before and after, accuracy before and after) where a curve was measured."""
    sides = [{p.threshold: p for p in curve(summary.get(side) or {})} for side in ("before", "after")]
    return [
        (x, number(sides[0][x].tpf, 2), number(sides[1][x].tpf, 2), number(sides[0][x].accuracy), number(last.accuracy))
        for x, last in sides[1].items()
        if x in sides[0]
    ]


def _show_curve(rows: list[tuple[str, str, str, str, str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="accuracy against speed, by confidence threshold", box=box.SIMPLE_HEAD)
    for name in ("threshold", "tpf before", "after", "accuracy before", "after"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def steps_rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """(decoding steps, then judge and diversity: before, after with the hand-made schedule, after with the learned one)
    where an evaluation was repeated in several numbers of steps."""
    sides = [(half, prefix) for half, prefix in (("before", ""), ("after", "base/"), ("after", ""))]
    columns = [
        {p.steps: p.value for p in decoding.curve(summary.get(half) or {}, f"{prefix}{what}")}
        for what in decoding.WHAT
        for half, prefix in sides
    ]
    steps = sorted({k for column in columns for k in column})
    return [(str(k), *(number(column.get(k)) for column in columns)) for k in steps]


def _show_steps(rows: list[tuple[str, ...]], reached: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    told = f"steps that reach the judge of the start: {reached}" if reached else None
    table = Table(title="by decoding steps, hand-made and learned schedule", box=box.SIMPLE_HEAD, caption=told)
    table.add_column("steps", justify="right")
    for what in decoding.WHAT:
        for name in (f"{what} before", "after, hand-made", "learned"):
            table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def show_trajectory(run: Path) -> None:
    """Print how the first sample of the last look was decoded, where its family tells (`trajectory`)."""
    from rich.console import Console
    from rich.text import Text

    from mmrl import json_io

    files = sorted((run / "samples").glob("step-*.jsonl"))
    rows = json_io.read_lines(files[-1], remedy="delete it") if files else []
    row = rows[0] if rows else {}
    lines = row.get("trajectory")
    if not isinstance(lines, list):
        return
    console = Console(highlight=False)
    console.print(Text(f"how an answer was unmasked: {row.get('prompt')}", style="bold"))
    for line in lines:
        console.print(Text(str(line)))
    console.print()
