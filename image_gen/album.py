"""What `mmrl generate` writes of pictures beside them: contact sheets and pictures.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from image_gen.sheet import Section, Shown, contact_sheet
from mmrl.data.records import Record

JSON = "pictures.json"
#: Pictures on one sheet; more make further sheets.
ON_A_SHEET = 64


@dataclass
class Made:
    """One picture: whose (this model or the one it is compared with), which, its file, what the run's rewards say."""

    model: str
    record: Record
    index: int
    file: str
    scores: dict[str, float] = field(default_factory=dict)
    unusable: str | None = None


def remove_earlier(out: Path) -> None:
    """Pictures and sheets of an earlier call: the file beside them tells of these only."""
    if (out / JSON).is_file():
        for pattern in ("picture-*.png", "base-*.png", "sheet*.png"):
            for old in out.glob(pattern):
                old.unlink()


def write_sheets(made: Sequence[Made], out: Path, told: dict[str, Any]) -> list[Path]:
    """sheet.png, and sheet-2.png and so on when there are many. A cell is one picture, or the base's beside it."""
    cells: dict[tuple[str, int], list[Made]] = {}
    places: dict[tuple[str, int], int] = {}
    for one in made:
        key = (one.file.split("-")[1], one.index)
        cells.setdefault(key, []).insert(0, one)  # the base comes last and stands first
        places.setdefault(key, len(places))
    per = max(1, ON_A_SHEET // max((len(c) for c in cells.values()), default=1))
    keys = sorted(cells, key=places.__getitem__)
    written = []
    for number, start in enumerate(range(0, len(keys), per), start=1):
        sections: dict[str, Section] = {}
        for key in keys[start : start + per]:
            group = cells[key]
            section = sections.setdefault(key[0], Section(group[0].record.prompt))
            section.cells.append([_shown(one, out, told["seed"], paired=len(group) > 1) for one in group])
        line = f"{told['steps']} steps, guidance {told['guidance']:g}, {told['width']} x {told['height']} pixels"
        line += f", {told['schedule']} schedule" if "schedule" in told else ""
        path = out / ("sheet.png" if number == 1 else f"sheet-{number}.png")
        contact_sheet(list(sections.values()), title=_name(told), subtitle=line).save(path)
        written.append(path)
    return written


def _name(told: dict[str, Any]) -> str:
    other = told.get("compared_with")
    return told["checkpoint"] if other is None else f"{other} (left) and {told['checkpoint']} (right)"


def _shown(one: Made, out: Path, seed: int, *, paired: bool) -> Shown:
    which = ("base, " if one.model == "base" else "aligned, ") if paired else ""
    caption = [f"{which}seed {seed}, no. {one.index}"]
    caption += [f"{name} {value:.3g}" for name, value in one.scores.items()]
    if one.unusable:
        caption.append(one.unusable)
    with Image.open(out / one.file) as picture:
        return Shown(picture.convert("RGB"), caption)


def write_json(made: Sequence[Made], out: Path, told: dict[str, Any]) -> Path:
    rows = []
    for one in made:
        row: dict[str, Any] = {"file": one.file, "model": "base" if one.model == "base" else "checkpoint"}
        row |= {"prompt": one.record.prompt, "seed": told["seed"], "index": one.index, "scores": one.scores}
        rows.append(row | ({"unusable": one.unusable} if one.unusable else {}))
    file = out / JSON
    body = {**told, "mean_scores": _means(made), "pictures": rows}
    file.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def _means(made: Sequence[Made]) -> dict[str, dict[str, float]]:
    """Of each score, by model."""
    found: dict[str, dict[str, list[float]]] = {}
    for one in made:
        kept = found.setdefault("base" if one.model == "base" else "checkpoint", {})
        for name, value in one.scores.items():
            kept.setdefault(name, []).append(value)
    return {model: {name: sum(v) / len(v) for name, v in kept.items()} for model, kept in found.items()}
