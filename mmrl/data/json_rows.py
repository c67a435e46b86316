"""JSON as data files hold it, one object a line or one list, and strictly: what a record could not keep is refused.

Loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrl.errors import UserError


def json_rows(path: Path) -> Iterator[tuple[int | str, Any]]:
    """(line number, parsed row or UserError) of JSONL, blank lines passed over; of a .json file, one list, (`#n`, row),
    n from 1. Raises UserError for a .json file that is broken or no list."""
    if path.suffix == ".json":
        rows = parse(path.read_bytes(), str(path))
        if not isinstance(rows, list):
            raise UserError(
                f"{path}: expected a list of records; or write JSONL (one object a line) and name it .jsonl"
            )
        yield from ((f"#{number}", row) for number, row in enumerate(rows, start=1))
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _row(line.strip(b"\r\n"), f"{path}:{number}", number)


def _row(text: bytes, where: str, line: int) -> Any:
    try:
        return parse(text, where, line=line)
    except UserError as error:
        return error


def parse(text: bytes, where: str, *, line: int | None = None) -> Any:
    """The value of a JSON text; a byte order mark may stand at the head of its file.

    line   the number of this line in its file; None: the text is a whole file.
    Raises UserError that starts with `where`: text that is no UTF-8 or no JSON, NaN, infinities, numbers of more than
    64 bits, a field given twice, half a surrogate pair, too deep nesting.
    """
    try:
        decoded = text.decode("utf-8-sig" if line in (None, 1) else "utf-8")
        value = json.loads(
            decoded, parse_constant=_refuse, parse_float=_finite, parse_int=_moderate, object_pairs_hook=_unique
        )
        if "\\ud" in decoded or "\\uD" in decoded:  # may stand for half a character, which no tokenizer takes
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        half = "half a surrogate pair (an escape \\ud800 to \\udfff alone); write whole characters"
        raise UserError(f"{where}: {half}") from error
    except UnicodeDecodeError as error:
        raise not_utf8(where, error) from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        if line is not None:
            place = f"column {error.colno}: {error.msg}; write one object a line"
        raise UserError(f"{where}: broken JSON at {place}") from error
    except RecursionError as error:
        raise UserError(f"{where}: JSON nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def not_utf8(where: str, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{where}: not UTF-8 text (byte {error.start}); save the file as UTF-8")


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
