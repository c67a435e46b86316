"""Rows of published files: JSON lists, JSONL, CSV. Loads no torch."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrl.data.json_rows import json_rows, parse
from mmrl.data.write import shown_path
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
        if isinstance(row, UserError):
            raise row
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object with named fields, got {type(row).__name__}")
        found = True
        yield where, row
    if not found:
        raise UserError(f"{path}: it holds no rows")


def json_object(path: Path) -> Row:
    """A file of one JSON object. Raises UserError."""
    value = parse(path.read_bytes(), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected one object {{...}}, got {type(value).__name__}")
    return value


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    yield from ((f"{path}:{number}", row) for number, row in json_rows(path))


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
