"""Rows of published data files: JSONL, JSON, CSV, parquet, folders saved by `datasets`, folders of JSON files. Loads no
torch.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dlm.tasks.base import Choice
from dlm.tasks.layout import STYLES
from mmrl.data.records import Record
from mmrl.data.tables import is_table, table_rows
from mmrl.errors import UserError

#: (row, place, id, style) -> record.
Make = Callable[[dict[str, Any], str, str, str], Record]


def read_all(path: str | Path, make: Make, *, style: str, name: str) -> list[Record]:
    """Every row as a record with the id `NAME:FILE:NUMBER`. Raises UserError for a missing or empty file, and for the
    first bad row, with its place."""
    file = Path(path).expanduser()
    Choice(STYLES).read(style, f"{file}: style")
    found = [make(row, where, f"{name}:{file.stem}:{i}", style) for i, (where, row) in enumerate(rows(file), start=1)]
    if not found:
        raise UserError(f"data: no record in {file}; it is empty")
    return found


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) in order. Raises UserError."""
    if not path.exists():
        raise UserError(f"data: no such file {path}")
    for where, row in _parsed(path):
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object with named columns, got {type(row).__name__}")
        yield where, row


def _parsed(path: Path) -> Iterator[tuple[str, Any]]:
    if path.is_dir() and not (path / "dataset_info.json").exists() and not (path / "dataset_dict.json").exists():
        files = sorted(path.rglob("*.json"))
        if not files:
            raise UserError(f"{path}: a folder without data; give a file, a folder of JSON files or a saved data set")
        for one in files:
            yield str(one), _json(one.read_bytes(), str(one))
    elif is_table(path):
        yield from ((f"{path}:#{i}", row) for i, row in enumerate(table_rows(path), start=1))
    elif path.suffix == ".csv":
        yield from _csv(path)
    elif path.suffix == ".json":
        found = _json(path.read_bytes(), str(path))
        yield from ((f"{path}:#{i}", row) for i, row in enumerate(found if isinstance(found, list) else [found], 1))
    else:
        with path.open("rb") as file:
            for i, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{i}", _json(line, f"{path}:{i}")


def _json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: broken JSON: {error}; write one object a line (.jsonl) or one list (.json)"
        ) from error


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for i, row in enumerate(csv.DictReader(file), start=2):
                yield f"{path}:{i}", dict(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file in UTF-8 ({error})") from error


def text_of(row: dict[str, Any], names: Sequence[str], where: str) -> str:
    """The first of these columns that is there, as text. Raises UserError."""
    found = next((row[n] for n in names if row.get(n) is not None), None)
    if not isinstance(found, str) or not found.strip():
        raise UserError(f"{where}: no text in column {' or '.join(map(repr, names))}; found {', '.join(map(str, row))}")
    return found
