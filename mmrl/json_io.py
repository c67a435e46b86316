"""JSON files that a run wrote, read back strictly: whatever is wrong with one is a UserError with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmrl.errors import UserError


def read_text(path: Path, *, remedy: str) -> str:
    """The text of a UTF-8 file. `remedy` ends the message of the UserError."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None


def read_object(path: Path, *, remedy: str) -> dict[str, Any]:
    """A file that holds one JSON object."""
    text = read_text(path, remedy=remedy)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object {{...}}, found a {type(value).__name__}; {remedy}")
    return value


def read_lines(path: Path, *, remedy: str, cut: list[str] | None = None) -> list[dict[str, Any]]:
    """A JSONL file: one object a line, blank lines are passed over.

    cut   gets a note instead of an error when only the last line is broken: a crash stopped the writing there.
    """
    lines = read_text(path, remedy=remedy).splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if cut is None or number < len(lines) or number == 1:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise UserError(f"{path}, line {number}: broken JSON: {reason}; {remedy}") from None
            cut.append(f"{path.name}: the last line ({number}) is cut off; the run was stopped while writing it")
            continue
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}: expected an object {{...}}, found a {type(row).__name__}; {remedy}"
            )
        rows.append(row)
    return rows
