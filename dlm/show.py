"""An unmasking trajectory as text: what was filled when. Axes: L completion positions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dlm.rows import Row

#: Stands for a position that is not filled yet.
MASK = "·"
NEWLINE = "↵"
#: Of the width of a terminal.
WIDTH = 100


@dataclass(frozen=True)
class Frame:
    """The canvas after `forward` of `forwards` forwards that filled something. filled_l, new_l: bool [L]; `new` was
    filled by the last of them."""

    forward: int
    forwards: int
    filled_l: Tensor
    new_l: Tensor


def frames(row: Row, *, most: int | None = None) -> list[Frame]:
    """The canvas from all masks to the end, at most `most` frames (at least 2), both ends among them, evenly spaced
    over the forwards that filled something up to the row's end: what full attention writes behind it is not shown.

    A demonstration has no steps: one frame, all filled.
    """
    if row.demonstration:
        return [Frame(0, 0, row.steps == row.steps, row.steps != row.steps)]
    found = sorted({int(s) for s in row.steps.tolist() if s >= 0})
    seen = {int(s) for s in row.steps[: row.length].tolist()}
    places = [0, *(k for k, step in enumerate(found, start=1) if step in seen)]
    out = []
    for k in (places[i] for i in spread(len(places) - 1, most)):
        last = found[k - 1] if k else -1
        filled = (row.steps >= 0) & (row.steps <= last)
        out.append(Frame(k, len(found), filled, filled & (row.steps == last)))
    return out


def spread(n: int, most: int | None) -> list[int]:
    """Of 0..n at most `most` numbers, evenly spaced, 0 and n among them."""
    if most is None or n + 1 <= most:
        return list(range(n + 1))
    parts = max(1, most - 1)
    return sorted({round(i * n / parts) for i in range(parts + 1)})


def trajectory_lines(tokenizer: Any, row: Row, *, most: int = 8, width: int = WIDTH) -> list[str]:
    """The trajectory of a row, a frame a paragraph; positions after its end are left out, masks are shown as `MASK`.

    most    frames at most, evenly spaced over the forwards that filled something. width  of a line, in characters.
    """
    shown = frames(row, most=most)
    digits = len(str(shown[-1].forwards))
    lines = []
    for frame in shown:
        head = f"{frame.forward:>{digits}}/{frame.forwards}  " if frame.forwards else ""
        text = "".join(part for part, _ in parts(tokenizer, row.ids, frame.filled_l, frame.new_l, end=row.length))
        space = " " * len(head)
        folded = textwrap.wrap(
            text, width - len(head), drop_whitespace=False, replace_whitespace=False, break_on_hyphens=False
        )
        lines += [(head if i == 0 else space) + part for i, part in enumerate(folded or [""])]
    return lines


Part = tuple[str, str]


def parts(
    tokenizer: Any, ids_l: Tensor | Sequence[int], filled_l: Tensor, new_l: Tensor, *, end: int | None = None
) -> list[Part]:
    """The first `end` positions as (text, "mask" | "new" | "old") of neighbours of one kind, in order.

    Runs of filled tokens are decoded together, since a character may be several tokens; a run is cut where new tokens
    begin only if its texts add up to the same. Special tokens (ends, pads) are left out.
    """
    ids = [int(i) for i in ids_l][:end]
    filled, new = filled_l.tolist(), new_l.tolist()
    out: list[Part] = []
    start = 0
    while start < len(ids):
        stop = start
        while stop < len(ids) and filled[stop] == filled[start]:
            stop += 1
        if filled[start]:
            out += _run(tokenizer, ids[start:stop], new[start:stop])
        else:
            out.append((MASK * (stop - start), "mask"))
        start = stop
    return [part for part in out if part[0]]


def _run(tokenizer: Any, ids: list[int], new: list[bool]) -> list[Part]:
    """Texts of the prefixes of a run, cut where old and new meet."""
    cuts = [i for i in range(1, len(ids)) if new[i] != new[i - 1]]
    out: list[Part] = []
    before, kind = "", new[0]
    for stop in (*cuts, len(ids)):
        text = visible(tokenizer.decode(ids[:stop], skip_special_tokens=True))
        if stop < len(ids) and text.endswith("\N{REPLACEMENT CHARACTER}"):
            kind = kind or new[stop]  # half a character: the whole counts as new
            continue
        if not text.startswith(before):
            return [(visible(tokenizer.decode(ids, skip_special_tokens=True)), "new")]
        out.append((text[len(before) :], "new" if kind else "old"))
        before, kind = text, new[stop] if stop < len(ids) else kind
    return out


def printable(text: str) -> str:
    """Without control characters other than line ends and tabs: they could steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def visible(text: str) -> str:
    """`printable` on one line."""
    return printable(text.replace("\r\n", "\n")).replace("\n", NEWLINE).replace("\t", " ")
