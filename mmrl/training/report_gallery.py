"""The sample gallery: the same record before and after training, boxes on the picture. Loads no torch."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl import json_io
from mmrl.data.images import open_image
from mmrl.errors import UserError

SHOWN = 24
LARGEST = 640  # longer sides are scaled down before they go into the page


@dataclass(frozen=True)
class Sample:
    """One answer. Boxes are x, y, width, height in the picture's pixels."""

    step: int
    output: str
    reward: list[tuple[str, str]]
    image: str | None
    size: tuple[int, int]
    boxes: list[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Pair:
    """A record's first and last answer."""

    id: str
    prompt: str
    gold: list[tuple[float, float, float, float]]
    before: Sample
    after: Sample | None


def pairs(run: Path, problems: list[str]) -> list[Pair]:
    """Records in the first and the last sample file of a run. What cannot be shown is added to `problems`."""
    files = sorted((run / "samples").glob("step-*.jsonl"))
    if not files:
        return []
    first, last = _rows(files[0]), _rows(files[-1])
    out = []
    for key, row in list(first.items())[:SHOWN]:
        later = last.get(key) if len(files) > 1 else None
        out.append(
            Pair(
                id=key,
                prompt=prompt_text(row.get("prompt", "")),
                gold=corners(row.get("gold")),
                before=_sample(row, files[0], run, problems),
                after=_sample(later, files[-1], run, problems) if later else None,
            )
        )
    return out


@dataclass(frozen=True)
class Rollout:
    """One sampled answer of a training batch."""

    id: str
    output: str
    finished: bool
    reward: list[tuple[str, str]]


def rollouts(run: Path) -> tuple[int, list[Rollout]]:
    """The last training rollouts that the run kept, and their step; (0, []) when it kept none."""
    files = sorted((run / "samples").glob("rollouts-step-*.jsonl"))
    if not files:
        return 0, []
    out = []
    for row in parsed(files[-1]):
        rewards = scores(row.get("reward"))
        out.append(Rollout(str(row.get("id")), str(row.get("output", "")), bool(row.get("finished", True)), rewards))
    return _step(files[-1]), out


def prompt_text(prompt: Any) -> str:
    """A prompt as text, also when it is a list of chat messages."""
    if isinstance(prompt, str):
        return prompt
    parts = []
    for message in prompt if isinstance(prompt, list) else [prompt]:
        content = message.get("content", "") if isinstance(message, dict) else message
        if isinstance(content, list):
            content = " ".join(str(p.get("text", "")) for p in content if isinstance(p, dict))
        parts.append(str(content))
    return "\n".join(part for part in parts if part.strip())


def corners(boxes: Any) -> list[tuple[float, float, float, float]]:
    """x1, y1, x2, y2 -> x, y, width, height; inverted boxes are turned the right way round to be visible."""
    if not isinstance(boxes or [], list) or not all(_is_box(box) for box in boxes or []):
        raise UserError(f"samples: boxes must be lists of four numbers, got {boxes!r:.60}; delete that sample file")
    out = []
    for x1, y1, x2, y2 in boxes or []:
        out.append((min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)))
    return out


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)


def _step(file: Path) -> int:
    found = re.search(r"step-(\d+)", file.name)
    return int(found.group(1)) if found else 0


def parsed(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file. Raises UserError with the line number of a broken one."""
    return json_io.read_lines(file, remedy="delete that line")


def _rows(file: Path) -> dict[str, Mapping[str, Any]]:
    """The first line of each record."""
    out: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(parsed(file), start=1):
        out.setdefault(str(row.get("id", number)), row)
    return out


def scores(reward: Any) -> list[tuple[str, str]]:
    """Reward components as name and text."""
    named = reward.items() if isinstance(reward, Mapping) else [] if reward is None else [("reward", reward)]
    return [(str(k), f"{v:.3f}" if isinstance(v, int | float) else "-") for k, v in named]


def _sample(row: Mapping[str, Any], file: Path, run: Path, problems: list[str]) -> Sample:
    image, size = None, (1, 1)
    if row.get("image"):
        path = _find(str(row["image"]), file, run)
        if path is None:
            problems.append(f"{file.name}: picture {row['image']} is not in the run folder; shown without it")
        else:
            try:
                image, size = picture(path)
            except UserError as error:
                problems.append(f"{file.name}: {error}; shown without it")
    return Sample(
        step=_step(file),
        output=str(row.get("output", "")),
        reward=scores(row.get("reward")),
        image=image,
        size=size,
        boxes=corners(row.get("boxes")),
    )


def _find(name: str, file: Path, run: Path) -> Path | None:
    """A picture beside the sample file or below the run folder, never outside it."""
    for base in (file.parent, run):
        path = (base / name).resolve()
        if path.is_file() and path.is_relative_to(run.resolve()):
            return path
    return None


def picture(path: Path) -> tuple[str, tuple[int, int]]:
    """A picture as a data URI, and its original size in pixels (the frame of the boxes). Raises UserError."""
    image = open_image(path)
    size = image.size
    if max(size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST))
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode(), size
