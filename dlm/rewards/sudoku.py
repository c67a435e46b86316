"""4 x 4 Sudoku rewards; the share of cells is that of d1 (arXiv 2504.12216). Loads no torch.

Checked with: formula only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlm.rewards.reading import Tags, paired_answer
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.registry import reward

CELLS = 16
#: Cells of each row, column and box.
UNITS = (
    [tuple(range(4 * i, 4 * i + 4)) for i in range(4)]
    + [tuple(range(i, CELLS, 4)) for i in range(4)]
    + [(i, i + 1, i + 4, i + 5) for i in (0, 2, 8, 10)]
)


def sudoku_answer(record: Record) -> tuple[str, str]:
    """(puzzle, solution) of a record, 16 digits each, 0 = empty. Raises UserError."""
    answer = record.answer if isinstance(record.answer, dict) else {}
    puzzle: Any = answer.get("puzzle")
    solution: Any = answer.get("solution")
    if not (_grid(puzzle, "01234") and _grid(solution, "1234")):
        raise UserError(
            f"record {record.id!r}: answer of a sudoku4 must be {{'puzzle': 16 digits 0-4, 'solution': 16 digits "
            f"1-4}}, both as text, got {record.answer!r:.80}"
        )
    if any(p not in ("0", s) for p, s in zip(puzzle, solution, strict=True)):
        raise UserError(f"record {record.id!r}: the solution changes a given cell of the puzzle {puzzle}")
    return puzzle, solution


def _grid(text: Any, digits: str) -> bool:
    return isinstance(text, str) and len(text) == CELLS and set(text) <= set(digits)


def said_grid(output: str, record: Record, tags: Tags) -> str | None:
    """The digits of the answer in order; None without an answer."""
    said = paired_answer(output, record, tags)
    return None if said is None else "".join(c for c in said if c.isdigit())


@reward("sudoku_cells", tasks=("sudoku4",))
def sudoku_cells_reward(
    outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]], *, tags: Tags = "auto"
) -> list[float]:
    """Share of the empty cells that are filled rightly, in [0, 1]. What is not a digit is passed over, missing cells
    are wrong, further ones are cut off; a puzzle without an empty cell gives 0. All of this as released."""
    values = []
    for output, record in zip(outputs, records, strict=True):
        puzzle, solution = sudoku_answer(record)
        said = (said_grid(output, record, tags) or "")[:CELLS].ljust(CELLS, "0")
        empty = [i for i in range(CELLS) if puzzle[i] == "0"]
        values.append(sum(said[i] == solution[i] for i in empty) / len(empty) if empty else 0.0)
    return values


@reward("sudoku_solved", tasks=("sudoku4", "sudoku4_open"))
def sudoku_solved_reward(
    outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]], *, tags: Tags = "auto"
) -> list[float]:
    """1 when the digits of the answer, 16 and no more, solve the puzzle, else 0. Where a puzzle has several solutions
    each of them does."""
    return [float(_solves(said_grid(o, r, tags), sudoku_answer(r)[0])) for o, r in zip(outputs, records, strict=True)]


def _solves(grid: str | None, puzzle: str) -> bool:
    """The puzzle's given cells are kept, and 1 to 4 stand once in every row, column and box."""
    if grid is None or len(grid) != CELLS or any(p not in ("0", g) for p, g in zip(puzzle, grid, strict=True)):
        return False
    return all({grid[cell] for cell in unit} == set("1234") for unit in UNITS)
