"""Records from files: JSONL (one object a line), prompts as text (one a line), parquet, or folders saved by `datasets`.

Loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

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
    if path.suffix == ".json":
        yield from _array(path)
        return
    if path.suffix == TEXT and path.is_file():
        yield from _prompts(path)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse(line.strip(b"\r\n"), f"{path}:{number}", first=number == 1)


def _prompts(path: Path) -> Iterator[tuple[int, Any]]:
    """The prompts of a text file as rows; their numbers are those of the lines, comments and blank lines counted."""
    found = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                found = True
                yield number, _not_utf8(f"{path}:{number}", error)
                continue
            if text and not text.startswith("#"):
                found = True
                yield number, {"prompt": text}
    if not found:
        raise UserError(f"data: no prompts in {path}; write one a line")


def _array(path: Path) -> Iterator[tuple[str, Any]]:
    """A .json file that holds one list of records; rows are numbered `#1`, `#2`, ..."""
    rows = _parse(path.read_bytes(), str(path), first=True)
    if isinstance(rows, UserError):
        raise rows
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of records; or write JSONL (one object a line) and name it .jsonl")
    for number, row in enumerate(rows, start=1):
        yield f"#{number}", row


def _parse(line: bytes, where: str, *, first: bool) -> Any:
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
        row = json.loads(
            text, parse_constant=_refuse, parse_float=_finite, parse_int=_moderate, object_pairs_hook=_unique
        )
        if "\\ud" in text or "\\uD" in text:  # an escape may stand for half a character, which no tokenizer takes
            json.dumps(row, ensure_ascii=False).encode()
        return row
    except UnicodeEncodeError:
        return UserError(f"{where}: half a surrogate pair (an escape \\ud800 to \\udfff alone); write whole characters")
    except UnicodeDecodeError as error:
        return _not_utf8(where, error)
    except json.JSONDecodeError as error:
        return UserError(f"{where}: broken JSON at {_place(error)}: {error.msg}; write one object a line")
    except RecursionError:
        return UserError(f"{where}: JSON nested too deeply")
    except ValueError as error:
        return UserError(f"{where}: {error}")


def _not_utf8(where: str, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{where}: not UTF-8 text (byte {error.start}); save the file as UTF-8")


def _place(error: json.JSONDecodeError) -> str:
    return f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not allowed in JSON; use a finite number, or null")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text:.30} is too large; use a finite number")
    return value


def _moderate(text: str) -> int:
    if len(text) > 19:  # more than 64 bits: no number of a record needs them, and floats lose them
        raise ValueError(f"the number {text:.30}... is too large; use a smaller one")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [k for k, _ in pairs]
        twice = next(k for k in names if names.count(k) > 1)
        raise ValueError(f"the field {twice!r} is given twice; keep one")
    return out
