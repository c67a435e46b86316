"""Published data, or a generated set, as JSONL that `mmrl train` reads. Loads no torch.

python -m dlm.tasks.convert gsm8k train.jsonl --out gsm8k_train.jsonl
python -m dlm.tasks.convert countdown train.parquet --numbers 3 --drop-last 500 --out countdown_train.jsonl
python -m dlm.tasks.convert generated "sums:train?steps=6&n=2000" --out sums.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dlm.tasks import countdown, gsm8k, math, sudoku4
from dlm.tasks.catalogue import builtin
from dlm.tasks.layout import STYLES
from mmrl.data.records import Record
from mmrl.data.write import row_of, write_rows
from mmrl.errors import UserError

READERS: dict[str, Callable[..., list[Record]]] = {
    "gsm8k": gsm8k.read,
    "math": math.read,
    "countdown": countdown.read,
    "sudoku4": sudoku4.read,
}
GENERATED = "generated"


def pick(
    records: list[Record], *, levels: Sequence[int], numbers: int | None, last: int, drop_last: int
) -> list[Record]:
    """The records asked for. Raises UserError when none is left."""
    if levels:
        records = [r for r in records if r.meta.get("level") in levels]
    if numbers is not None:
        records = [r for r in records if len(r.answer["numbers"]) == numbers]
    records = records[: max(0, len(records) - drop_last)] if drop_last else records
    records = records[-last:] if last else records
    if not records:
        raise UserError("no record is left; loosen --levels, --numbers or --drop-last")
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 after one line about what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m dlm.tasks.convert", description="Data of language tasks as JSONL.")
    parser.add_argument("kind", choices=[*READERS, GENERATED], help="layout of the source")
    parser.add_argument("source", help="file or folder; for generated a set such as sums:train?n=1000")
    parser.add_argument("--out", required=True, type=Path, help="the JSONL file to write")
    parser.add_argument("--style", choices=STYLES, help="d1, the default: instructions and tags; plain: the bare task")
    parser.add_argument("--levels", type=int, nargs="+", default=[], help="math: only these levels")
    parser.add_argument("--numbers", type=int, help="countdown: only problems with so many numbers")
    parser.add_argument("--last", type=int, default=0, help="only the last N records")
    parser.add_argument("--drop-last", type=int, default=0, help="all but the last N records")
    given = parser.parse_args(arguments)
    try:
        if given.kind == GENERATED:
            if given.style:
                raise UserError(f"--style: write it into the name of the set, {given.source}?style={given.style}")
            records = builtin(given.source)
        else:
            records = READERS[given.kind](given.source, style=given.style or "d1")
        if given.levels and given.kind != "math":
            raise UserError("--levels: only records of math have a level; drop it")
        if given.numbers is not None and any(r.task != "countdown" for r in records):
            raise UserError("--numbers: only records of countdown have numbers; drop it")
        if min(given.last, given.drop_last) < 0 or (given.last and given.drop_last):
            raise UserError("--last and --drop-last: give one of them, a number of at least 1")
        kept = pick(records, levels=given.levels, numbers=given.numbers, last=given.last, drop_last=given.drop_last)
        write_rows([row_of(record, given.out) for record in kept], given.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(kept)} of {len(records)} records written to {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
