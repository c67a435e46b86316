"""Rows of published files (JSON lists, JSONL, CSV), and records and rows written back as JSONL. Loads no torch."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.data.records import Record
from mmrl.errors import UserError

Row = dict[str, Any]
_MEDIA = ("image", "images", "image_path", "video", "videos")


def rows_of(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, row) in order: a .json list of objects, a .csv with a head line, else one JSON object a line.

    Raises UserError for a missing file, and for one that is broken or has no row.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    found = False
    for where, row in _csv(path) if path.suffix == ".csv" else _json(path):
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object with named fields, got {type(row).__name__}")
        found = True
        yield where, row
    if not found:
        raise UserError(f"{path}: it holds no rows")


def json_object(path: Path) -> Row:
    """A file of one JSON object. Raises UserError."""
    value = _parse(path.read_bytes(), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected one object {{...}}, got {type(value).__name__}")
    return value


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    text = path.read_bytes()
    if path.suffix == ".json":
        value = _parse(text, str(path))
        if not isinstance(value, list):
            raise UserError(f"{path}: expected a list of objects [...], got {type(value).__name__}")
        yield from ((f"{path}:#{i}", row) for i, row in enumerate(value, start=1))
        return
    for i, line in enumerate(text.split(b"\n"), start=1):
        if line.strip():
            yield f"{path}:{i}", _parse(line, f"{path}:{i}")


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken JSON: {error}") from None


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not allowed; use a finite number, or null")


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield f"{path}:{reader.line_num}", {str(k): v for k, v in row.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file in UTF-8 ({error})") from None


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field that must be a text with something in it, stripped. Raises UserError."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: no text under {name!r}; found the fields {', '.join(map(str, row))[:120]}")
    return value.strip()


def name_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field that must be a text or a whole number, as text. Raises UserError."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise UserError(f"{where}: no name under {name!r}, got {value!r:.60}")
    return str(value).strip()


def list_of(row: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """A field that must be a list. Raises UserError."""
    value = row.get(name)
    if not isinstance(value, list):
        raise UserError(f"{where}: {name!r} must be a list, got {value!r:.60}")
    return value


def shown_path(path: str | Path, out: Path) -> str:
    """How a row of the file `out` names this file: relative to its folder where it lies in there, else absolute."""
    folder, whole = Path(os.path.abspath(out.parent)), Path(os.path.abspath(path))
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)


def row_of(record: Record, out: Path) -> Row:
    """The record as a row of the JSONL file `out`, which `mmrl.data.read` reads back to an equal record."""
    row: Row = {"id": record.id, "task": record.task, "prompt": record.prompt, "answer": record.answer}
    for kind in ("images", "videos"):
        if paths := getattr(record, kind):
            row[kind] = [shown_path(path, out) for path in paths]
    if record.response is not None:
        row["response"] = record.response
    return {**row, "meta": record.meta}


def moved(row: Row, source: Path, out: Path) -> Row:
    """The row of `source` as a row of `out`: relative paths still name the same files."""
    if os.path.abspath(source.parent) == os.path.abspath(out.parent):
        return row
    changed = dict(row)
    for key in _MEDIA:
        if isinstance(row.get(key), str):
            changed[key] = _moved(row[key], source, out)
        elif isinstance(row.get(key), list):
            changed[key] = [_moved(p, source, out) if isinstance(p, str) else p for p in row[key]]
    return changed


def _moved(path: str, source: Path, out: Path) -> str:
    if path.startswith(("/", "~")) or "://" in path:
        return path
    return shown_path(source.parent / path, out)


def write_rows(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """One JSON object a line; the file is complete or not there at all. Raises UserError."""
    write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), out)


def write_text(text: str, out: Path) -> None:
    """The file is complete or not there at all. Raises UserError when it cannot be written."""
    part = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, out)
    except (OSError, UnicodeEncodeError) as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{out}: cannot be written ({error})") from None
