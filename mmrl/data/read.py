"""Records from files: JSONL (one object a line), prompts as text (one a line), parquet, or folders saved by `datasets`.

Loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from mmrl.data.json_rows import json_rows, not_utf8
from mmrl.data.records import Record
from mmrl.data.rows import Require, make_record
from mmrl.data.tables import is_table, table_rows
from mmrl.errors import RecordError, UserError

#: Files of prompts alone: one a line, lines that are blank or start with # are passed over.
TEXT = ".txt"


def read_records(
    paths: str | Path | Sequence[str | Path],
    *,
    on_error: Literal["stop", "skip"] = "stop",
    require: Require = "answer",
    look: Callable[[Record], None] | None = None,
) -> tuple[list[Record], list[str]]:
    """All records of the files, and a line per row left out (only with on_error: skip).

    look   a further check of each record (its pictures), which raises UserError.
    Raises UserError for a missing or empty file, for no usable record at all, and for the first bad row with
    on_error: stop; the message starts with file:line.
    """
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not files:
        raise UserError("data: no file given")
    records: list[Record] = []
    problems: list[str] = []
    seen: dict[str, str] = {}
    for name in files:
        for found in scan(Path(name).expanduser(), require=require, seen=seen, look=look):
            if isinstance(found, Record):
                records.append(found)
            elif on_error == "stop":
                raise found
            else:
                problems.append(str(found))
    if not records:
        tried = ", ".join(str(f) for f in files)
        why = f"; all {len(problems)} rows are bad, the first: {problems[0]}" if problems else "; it is empty"
        raise UserError(f"data: no record in {tried}{why}")
    return records, problems


def scan(
    path: Path,
    *,
    require: Require = "answer",
    seen: dict[str, str] | None = None,
    look: Callable[[Record], None] | None = None,
) -> Iterator[Record | UserError]:
    """Row by row: the record, or what is wrong with it. `seen`: ids met so far and where; `look`: a further check."""
    if not path.exists():
        raise UserError(f"data: no such file {path}")
    seen = {} if seen is None else seen
    if path.suffix == TEXT and require != "prompt":
        raise UserError(f"data: {path} holds prompts only, and each record needs a {require} too; write JSONL")
    folder = path.parent.resolve()
    for number, row in _rows(path):
        where = f"{path}:{number}"
        try:
            if isinstance(row, UserError):
                raise row
            default = f"{path.stem}-{str(number).lstrip('#')}"
            record = make_record(row, where=where, default_id=default, folder=folder, require=require)
            if record.id in seen:
                raise UserError(f"{where}: duplicate id {record.id!r}, first at {seen[record.id]}; ids must differ")
            if look is not None:
                _look(look, record, where)
        except UserError as error:
            yield error
        else:
            seen[record.id] = where
            yield record


def _look(look: Callable[[Record], None], record: Record, where: str) -> None:
    try:
        look(record)
    except UserError as error:
        named = f"record {record.id!r}: "  # once is enough
        problem = error.problem if isinstance(error, RecordError) else str(error).removeprefix(named)
        raise UserError(f"{where} (record {record.id!r}): {problem}") from error


def _rows(path: Path) -> Iterator[tuple[int | str, Any]]:
    """(line number, parsed row or UserError); for tables and lists the row number as `#n`, from 1."""
    if is_table(path):
        yield from ((f"#{number}", row) for number, row in enumerate(table_rows(path), start=1))
        return
    if path.suffix == TEXT and path.is_file():
        yield from _prompts(path)
        return
    yield from json_rows(path)


def _prompts(path: Path) -> Iterator[tuple[int, Any]]:
    """The prompts of a text file as rows; their numbers are those of the lines, comments and blank lines counted."""
    found = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                found = True
                yield number, not_utf8(f"{path}:{number}", error)
                continue
            if text and not text.startswith("#"):
                found = True
                yield number, {"prompt": text}
    if not found:
        raise UserError(f"data: no prompts in {path}; write one a line")
