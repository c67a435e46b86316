"""Sudoku, 4 x 4, with exactly one solution. Loads no torch.

    sudoku 3000040221004021>   ->   3214143221434321

Cells are written row by row, 0 = empty. There are 288 full grids; a puzzle is one of them with holes.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

from dlm.tasks.base import Options, Problem, Task, Whole, make_records
from dlm.tasks.files import read_all, text_of
from dlm.tasks.layout import d1_prompt, d1_response
from mmrl.data.records import Record
from mmrl.errors import UserError

CELLS = 16


@lru_cache(maxsize=1)
def grids() -> tuple[str, ...]:
    """All 288 full grids, in rising order."""
    found: list[str] = []

    def grow(grid: str) -> None:
        if len(grid) == CELLS:
            found.append(grid)
            return
        for value in "1234":
            if all(grid[i] != value for i in _peers(len(grid))):
                grow(grid + value)

    grow("")
    return tuple(found)


def _peers(cell: int) -> list[int]:
    """Earlier cells in the same row, column or 2 x 2 box."""
    row, column = divmod(cell, 4)
    return [
        i for i in range(cell) if i // 4 == row or i % 4 == column or (i // 8 == row // 2 and i % 4 // 2 == column // 2)
    ]


@lru_cache(maxsize=1)
def _with_value() -> dict[tuple[int, str], int]:
    """(cell, value) -> the grids that have it there, as the bits of a number."""
    return {(c, v): sum(1 << g for g, grid in enumerate(grids()) if grid[c] == v) for c in range(CELLS) for v in "1234"}


def solutions(puzzle: str) -> list[str]:
    """Every full grid that agrees with the givens of a puzzle."""
    left = (1 << len(grids())) - 1
    for cell, value in enumerate(puzzle):
        if value != "0":
            left &= _with_value().get((cell, value), 0)
    return [grid for g, grid in enumerate(grids()) if left >> g & 1]


def _unique(puzzle: str) -> bool:
    left = (1 << len(grids())) - 1
    for cell, value in enumerate(puzzle):
        if value != "0":
            left &= _with_value()[cell, value]
    return left & (left - 1) == 0


def _draw(rng: random.Random, options: Options) -> Problem:
    while True:
        problem = _draw_open(rng, options)
        if _unique(problem.key):
            return problem


def _draw_open(rng: random.Random, options: Options) -> Problem:
    grid = grids()[rng.randrange(len(grids()))]
    cells = list(range(CELLS))
    holes = {cells.pop(rng.randrange(len(cells))) for _ in range(options["holes"])}
    puzzle = "".join("0" if i in holes else v for i, v in enumerate(grid))
    return Problem(
        key=puzzle,
        same=puzzle,
        short=f"sudoku {puzzle}>",
        question=question(puzzle),
        answer={"puzzle": puzzle, "solution": grid},
        said=grid,
        worked=_worked(puzzle, grid),
        hint=HINT,
    )


HINT = "the 16 digits of the full grid"


def question(puzzle: str) -> str:
    """The d1 wording; shared with the reader of published files."""
    return (
        "Fill a 4x4 Sudoku: every row, every column and every 2x2 box holds 1, 2, 3 and 4 once. The grid is written "
        f"row by row as 16 digits, 0 marks an empty cell. Give all 16 digits of the full grid.\nPuzzle: {puzzle}"
    )


TASK = Task("sudoku4", {"holes": Whole(8, 1, 12)}, _draw)
OPEN = Task("sudoku4_open", {"holes": Whole(11, 1, 15)}, _draw_open)


def make(split: str, *, seed: int = 0, n: int, **options: Any) -> list[Record]:
    """`holes`: empty cells (4 givens are the fewest that fix a grid). `style`: plain or d1.

    The answer is `{"puzzle": 16 digits with 0 for holes, "solution": 16 digits}`.
    """
    return make_records(TASK, split, seed=seed, n=n, options=options)


def _worked(puzzle: str, grid: str) -> str:
    """The filled cells by row and column, r1c2=4;..."""
    return ";".join(f"r{i // 4 + 1}c{i % 4 + 1}={grid[i]}" for i in range(CELLS) if puzzle[i] == "0")


def read(path: str | Path, *, style: str = "d1") -> list[Record]:
    """Records of a published file: columns `Puzzle` and `Solution`, 16 digits each (CSV of d1). Raises UserError, also
    for a puzzle that has not exactly this one solution."""
    return read_all(path, _record, style=style, name="sudoku4")


def _record(row: dict[str, Any], where: str, name: str, style: str) -> Record:
    puzzle = text_of(row, ("Puzzle", "puzzle"), where).strip()
    grid = text_of(row, ("Solution", "solution"), where).strip()
    if len(puzzle) != CELLS or not set(puzzle) <= set("01234") or solutions(puzzle) != [grid]:
        raise UserError(f"{where}: {puzzle!r:.40} is no 4x4 puzzle with {grid!r:.40} as its only solution")
    if style == "d1":
        prompt, response = d1_prompt(question(puzzle), answer=HINT), d1_response(_worked(puzzle, grid), grid)
    else:
        prompt, response = f"sudoku {puzzle}>", grid
    answer = {"puzzle": puzzle, "solution": grid}
    return Record(name, "sudoku4", prompt, answer=answer, response=response, meta={"source": "sudoku4", "style": style})


def make_open(split: str, *, seed: int = 0, n: int, **options: Any) -> list[Record]:
    """The same without the demand for one solution; `solution` in the answer is the one that is demonstrated."""
    return make_records(OPEN, split, seed=seed, n=n, options=options)
