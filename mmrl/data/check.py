"""What `mmrl check-data FILE` reports: counts, every bad row, pictures, prompt lengths. Loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from mmrl.data.images import MAX_PIXELS, MAX_SIDE, open_image
from mmrl.data.read import TEXT, scan
from mmrl.data.records import Record
from mmrl.data.rows import PICTURE_TASK, Require
from mmrl.errors import UserError

SHOWN = 50


@dataclass(frozen=True)
class Report:
    """`lines` are for people; `problems` has every bad row, also those that `lines` only counts."""

    lines: list[str]
    n_ok: int
    n_bad: int
    problems: list[str]


def check_file(
    path: str | Path,
    *,
    require: Require | None = None,
    max_side: int = MAX_SIDE,
    max_pixels: int = MAX_PIXELS,
    further: Callable[[Record], None] | None = None,
) -> Report:
    """Read every row and decode every picture (each file once). A missing or empty file raises UserError.

    further: one more check of each record (its videos), which raises UserError.
    require: what a row must have besides its prompt; None = an answer, in a text file of prompts nothing.
    """
    file = Path(path).expanduser()
    require = require or ("prompt" if file.suffix == TEXT else "answer")
    good: list[Record] = []
    problems: list[str] = []
    pictures: dict[str, str | None] = {}
    in_memory = 0

    def look(record: Record) -> None:
        for image in record.images:
            fault = _picture_fault(image, pictures, max_side, max_pixels)
            if fault:
                raise UserError(fault)
        if further is not None:
            further(record)

    for found in scan(file, require=require, look=look):
        if isinstance(found, UserError):
            problems.append(str(found))
            continue
        in_memory += sum(isinstance(image, Image.Image) for image in found.images)
        good.append(replace(found, images=()))  # decoded pictures must not pile up
    if not good and not problems:
        raise UserError(f"data: no record in {file}; it is empty")
    lines = _summary(file, good, problems, len(pictures) + in_memory)
    return Report(lines, len(good), len(problems), problems)


def _picture_fault(image: Any, known: dict[str, str | None], max_side: int, max_pixels: int) -> str | None:
    if isinstance(image, str) and image in known:
        return known[image]
    fault = None
    try:
        open_image(image, max_side, max_pixels)
    except UserError as error:
        fault = str(error)
    if isinstance(image, str):
        known[image] = fault
    return fault


def _summary(file: Path, good: list[Record], problems: list[str], n_pictures: int) -> list[str]:
    lines = [f"{file}: {len(good)} good records, {len(problems)} bad"]
    for title, counts in (
        ("tasks", Counter(r.task for r in good)),
        ("frames of boxes", Counter(r.frame for r in good if r.task in ("detection", "grounding"))),
    ):
        if counts:
            lines.append(f"{title}: " + ", ".join(f"{name} {n}" for name, n in counts.most_common()))
    lines.append(f"pictures decoded: {n_pictures}")
    nothing = sum(r.task == "detection" and r.answer in ([], "No Objects") for r in good)
    if nothing:
        lines.append(f"detection records with nothing to find: {nothing}")
    if good:
        lengths = [_length(r.prompt) for r in good]
        lines.append(f"prompt length in characters: {min(lengths)} to {max(lengths)}, median {median(lengths):g}")
        demos = sum(r.response is not None for r in good)
        lines.append(f"records with a response to imitate: {demos}")
        lines += _prompts_for_pictures([r for r in good if r.task == PICTURE_TASK])
    lines += problems[:SHOWN]
    if len(problems) > SHOWN:
        lines.append(f"... and {len(problems) - SHOWN} more bad rows")
    return lines


def _prompts_for_pictures(records: list[Record]) -> list[str]:
    """How many differ, and what is told beside them: tags with their counts, other fields by name."""
    if not records:
        return []
    lines = [f"prompts for pictures: {len(records)}, {len({r.prompt for r in records})} of them different"]
    if tags := Counter(str(r.meta["tag"]) for r in records if "tag" in r.meta):
        lines.append("tags: " + ", ".join(f"{name} {n}" for name, n in tags.most_common()))
    if fields := Counter(key for r in records for key in r.meta if key != "tag"):
        lines.append("further fields: " + ", ".join(f"{name} {n}" for name, n in fields.most_common()))
    return lines


def _length(prompt: Any) -> int:
    """Characters of text in a prompt."""
    if isinstance(prompt, str):
        return len(prompt)
    parts = [m["content"] for m in prompt]
    texts = [p if isinstance(p, str) else "".join(q.get("text", "") for q in p) for p in parts]
    return sum(map(len, texts))
