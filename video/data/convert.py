"""`mmrl data convert FORMAT IN OUT`: published question sets as JSONL that training reads. Loads no torch."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl.data.records import Record
from mmrl.data.write import row_of, write_rows
from mmrl.errors import UserError, nearest
from video.data import clevrer, mmvu, nextgqa, star, tw_grpo, video_r1
from video.data.layout import ASK

READERS: dict[str, Callable[..., Iterator[Record | str]]] = {
    "clevrer": clevrer.read,
    "nextgqa": nextgqa.read,
    "star": star.read,
    "mmvu": mmvu.read,
    "video-r1": video_r1.read,
    "tw-grpo": tw_grpo.read,
}


@dataclass
class Converted:
    """The records, and what was left out, by reason. `missing`: records whose video or picture is not there."""

    records: list[Record]
    left_out: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)

    def lines(self, out: Path) -> list[str]:
        tasks = ", ".join(f"{task} {n}" for task, n in Counter(r.task for r in self.records).most_common())
        types = ", ".join(f"{t} {n}" for t, n in Counter(r.meta["type"] for r in self.records).most_common())
        lines = [f"{len(self.records)} records written to {out}", f"tasks: {tasks}", f"types: {types}"]
        lines += [f"left out, {why}: {n}" for why, n in self.left_out.most_common()]
        if self.missing:
            lines.append(
                f"warning: {len(self.missing)} records name a file that is not there, the first {self.missing[0]}; "
                "give --videos, or leave them out by --drop-missing"
            )
        return lines


def convert(
    layout: str,
    source: Path,
    *,
    videos: Path | None = None,
    ask: str = "mixed",
    types: Sequence[str] = (),
    drop_missing: bool = False,
    **options: Any,
) -> Converted:
    """Read a published file.

    layout    a name of `READERS`.
    videos    folder of the videos; None: that of `source`.
    ask       what the prompts ask for: single, multiple or mixed letters, none.
    types     only questions of these types (`meta["type"]`); empty = all.
    options   what only this layout takes: `task` (nextgqa), `times` (star). None = its default.
    Raises UserError: unknown names, an option that the layout does not take, a bad row, ids twice, nothing left.
    """
    if layout not in READERS:
        raise UserError(f"unknown layout {layout!r}{nearest(layout, READERS)}")
    if ask not in ASK:
        raise UserError(f"--ask: unknown {ask!r}{nearest(ask, ASK)}")
    if videos is not None and not videos.is_dir():
        raise UserError(f"--videos {videos}: no such folder")
    read, own = READERS[layout], {k: v for k, v in options.items() if v is not None}
    for key in own:
        if key not in inspect.signature(read).parameters:
            raise UserError(f"--{key}: {layout} does not take it; leave it out")
    done = Converted([])
    seen: set[str] = set()
    there: set[str] = set()
    for found in read(source, videos or source.parent, ask=ask, **own):
        if isinstance(found, str):
            done.left_out[found] += 1
            continue
        if found.id in seen:
            raise UserError(f"{source}: the id {found.id!r} is there twice; ids must differ")
        seen.add(found.id)
        there.add(str(found.meta["type"]))
        if types and str(found.meta["type"]) not in types:
            done.left_out["another type"] += 1
        else:
            _take(found, done, drop_missing)
    for one in types:
        if one not in there:
            raise UserError(f"--types: no question of type {one!r} in {source}{nearest(one, there)}")
    if not done.records:
        why = ", ".join(f"{reason} {n}" for reason, n in done.left_out.items())
        raise UserError(f"{source}: no record is left ({why or 'the file gives none'})")
    return done


def _take(record: Record, done: Converted, drop_missing: bool) -> None:
    gone = [path for path in (*record.images, *record.videos) if not Path(path).is_file()]
    if gone and drop_missing:
        done.left_out["video or picture not there"] += 1
        return
    done.missing += gone[:1]
    done.records.append(record)


def convert_file(layout: str, source: Path, out: Path, **options: Any) -> list[str]:
    """`convert`, written as JSONL; lines that say what was done. Raises UserError."""
    if source.resolve() == out.resolve():
        raise UserError(f"{out}: the file that is read would be overwritten; give another name to write to")
    if out.suffix != ".jsonl":
        raise UserError(f"{out}: what is written is JSONL; name it .jsonl")
    done = convert(layout, source, **options)
    write_rows([row_of(record, out) for record in done.records], out, parents=True)
    return done.lines(out)
