"""Records as rows of a JSONL file, and files that are written whole or not at all. Loads no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmrl.data.records import Record
from mmrl.errors import UserError


def shown_path(path: str | Path, out: Path) -> str:
    """How a row of the file `out` names this file: relative to its folder where it lies in there, else absolute."""
    folder, whole = Path(os.path.abspath(out.parent)), Path(os.path.abspath(path))
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)


def row_of(record: Record, out: Path) -> dict[str, Any]:
    """The record as a row of the JSONL file `out`, which `mmrl.data.read` reads back to an equal record. Pictures and
    videos are files."""
    row: dict[str, Any] = {"id": record.id, "task": record.task, "prompt": record.prompt, "answer": record.answer}
    for kind in ("images", "videos"):
        if paths := getattr(record, kind):
            row[kind] = [shown_path(path, out) for path in paths]
    if record.response is not None:
        row["response"] = record.response
    if record.frame != Record.frame:
        row["frame"] = record.frame
    return {**row, "meta": record.meta}


def write_rows(rows: Sequence[Mapping[str, Any]], out: Path, *, parents: bool = False) -> None:
    """One JSON object a line, as `write_text` does it."""
    write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), out, parents=parents)


def write_text(text: str, out: Path, *, parents: bool = False) -> None:
    """The file is complete or not there at all. `parents`: its folder is made where there is none.

    Raises UserError when it cannot be written.
    """
    part = out.with_name(out.name + ".part")
    try:
        if parents:
            out.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, out)
    except (OSError, UnicodeEncodeError) as error:
        with suppress(OSError):
            part.unlink()
        raise UserError(f"{out}: cannot be written ({error})") from error
