"""The sample gallery: the same record at several steps, in several runs, boxes on the picture. Loads no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrl import json_io
from mmrl.errors import UserError
from mmrl.report.pictures import Pictures
from mmrl.report.tokens import weighed

RECORDS = 200  # shown on a page
ANSWERS = 12_000  # kept on a page, over records, runs and steps
DRAWN_BYTES = 20_000_000  # of pictures that models drew, about; each step has other ones
TRAJECTORY_BYTES = 8_000_000  # of trajectories and token weights, about: several times as long as their answers
THUMBNAIL_BYTES = 30_000  # of one of them at most, about: large ones are made smaller
TRUTH = 300  # characters of a true answer
OVERLAP = 0.5  # IoU from which a box counts as found
#: Components that say nothing about whether an answer is right: they judge its form, its length or its speed.
BESIDE = {"format", "confidence", "overlong", "tpf", "boxed", "int", "soft_format", "strict_format", "xml_count"}
_LONG = ("trajectory", "tokens")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Answer:
    """One answer. Boxes are x, y, width, height in the picture's pixels; picture: a number of `Gallery.pictures`.

    pictures, totals    of a model that draws: its pictures of the prompt and the reward of each; empty for texts. Then
                        `reward` and `total` are means over them, and nothing is called right.
    trajectory          of a model that unmasks a canvas: how it was filled, as lines of text; else empty.
    filling             the same of a model that draws: a picture for each of `pictures`; else empty.
    tokens              (text, weight) of each token, of a run that weighs tokens; else empty.
    """

    step: int
    output: str
    boxes: list[Box]
    reward: list[tuple[str, float | None]]
    total: float | None
    right: bool | None
    picture: int | None
    pictures: list[int] = field(default_factory=list)
    totals: list[float | None] = field(default_factory=list)
    trajectory: list[str] = field(default_factory=list)
    filling: list[int] = field(default_factory=list)
    tokens: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class Sample:
    """One record: what was asked, and the answers of each run in order of steps. drawn: they are pictures. truth: the
    true answer, where the sample file tells it."""

    id: str
    task: str
    prompt: str
    gold: list[Box]
    drawn: bool = False
    truth: str = ""
    answers: dict[int, list[Answer]] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """notes: what was left out to keep the page small. drawn: every sample is a picture that a model drew."""

    samples: list[Sample]
    pictures: Pictures
    notes: list[str]

    @property
    def drawn(self) -> bool:
        return bool(self.samples) and all(sample.drawn for sample in self.samples)

    @property
    def filled(self) -> bool:
        """Some picture shows how its canvas was filled."""
        return any(answer.filling for sample in self.samples for own in sample.answers.values() for answer in own)

    @property
    def weights(self) -> tuple[float, float] | None:
        """The smallest and the largest weight of a token; None where tokens have none."""
        own = (answer for sample in self.samples for answers in sample.answers.values() for answer in answers)
        found = [weight for answer in own for _, weight in answer.tokens]
        return (min(found), max(found)) if found else None

    @property
    def boxed(self) -> bool:
        """There is a box to be seen."""
        answers = (answer for sample in self.samples for own in sample.answers.values() for answer in own)
        return any(sample.gold for sample in self.samples) or any(answer.boxes for answer in answers)


def collect(
    runs: Sequence[Path], problems: Sequence[list[str]], successes: Sequence[Mapping[str, float]] = ()
) -> Gallery:
    """The samples of all runs, by record. What cannot be shown is added to the run's `problems`.

    successes   of each run, as `success` reads it: the reward that tells whether an answer is right.
    """
    files = [sorted((run / "samples").glob("step-*.jsonl")) for run in runs]
    first = [_rows(own[0]) if own else {} for own in files]
    ids = list(dict.fromkeys(key for rows in first for key in rows))
    notes = []
    if len(ids) > RECORDS:
        notes.append(f"The first {RECORDS} of {len(ids)} sampled records are shown.")
        ids = ids[:RECORDS]
    drawn = any(row.get("drawn") for rows in first for row in rows.values())
    per_run = max(2, ANSWERS // max(1, len(ids) * len(runs)))
    if drawn:
        per_run = max(2, min(per_run, DRAWN_BYTES // max(1, sum(map(_weight, runs, first)))))
    told = sum(len(json.dumps(rows[key].get(name))) for rows in first for key in ids if key in rows for name in _LONG)
    per_run = max(2, min(per_run, TRAJECTORY_BYTES // max(1, told)))
    if any(len(own) > per_run for own in files):
        notes.append(f"Of the steps with samples {per_run} a run are kept, evenly spaced, with the first and the last.")
    samples: dict[str, Sample] = {}
    pictures = Pictures(len(ids), drawn=drawn)
    for i, run in enumerate(runs):
        for file in evenly(files[i], per_run):
            for key, row in _rows(file).items():
                if key not in samples and len(samples) < RECORDS and key in ids:
                    task, prompt = str(row.get("task") or ""), prompt_text(row.get("prompt", ""))
                    gold, truth = corners(row.get("gold")), _truth(row.get("answer"))
                    samples[key] = Sample(key, task, prompt, gold, row.get("drawn") is True, truth)
                if key in samples:
                    known = successes[i] if successes else {}
                    answer = _answer(row, samples[key], file, run, pictures, problems[i], known)
                    samples[key].answers.setdefault(i, []).append(answer)
    return Gallery([samples[key] for key in ids if key in samples], pictures, notes)


def _truth(answer: Any) -> str:
    return str(answer)[:TRUTH] if isinstance(answer, str) or _is_number(answer) else ""


def _weight(run: Path, rows: Mapping[str, Mapping[str, Any]]) -> int:
    """Bytes that the pictures of one step add to a page, about: as its first one, each."""
    images = [name for row in rows.values() for name in (*_drawn_names(row), *_filling_names(row))]
    path = _find(images[0], run / "samples" / "step", run) if images else None
    return len(images) * min(path.stat().st_size, THUMBNAIL_BYTES) if path else 0


def _drawn_names(row: Mapping[str, Any]) -> list[str]:
    """The files of the pictures that a model drew."""
    if row.get("drawn") is not True:
        return []
    names = row.get("images")
    return [str(name) for name in names] if isinstance(names, list) else [str(row["image"])] if row.get("image") else []


def _filling_names(row: Mapping[str, Any]) -> list[str]:
    names = row.get("filling")
    return [str(name) for name in names] if row.get("drawn") is True and isinstance(names, list) else []


def evenly(files: Sequence[Path], most: int) -> list[Path]:
    """At most `most` (2 or more) files, the first and the last among them."""
    if len(files) <= most:
        return list(files)
    return [files[round(i * (len(files) - 1) / (most - 1))] for i in range(most)]


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
        rewards = [(name, "-" if value is None else f"{value:.3f}") for name, value in scores(row.get("reward"))]
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


def corners(boxes: Any) -> list[Box]:
    """x1, y1, x2, y2 -> x, y, width, height; inverted boxes are turned the right way round to be visible."""
    if not isinstance(boxes or [], list) or not all(_is_box(box) for box in boxes or []):
        raise UserError(f"samples: boxes must be lists of four numbers, got {boxes!r:.60}; delete that sample file")
    out = []
    for x1, y1, x2, y2 in boxes or []:
        sides = (min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1))
        out.append((round(sides[0], 2), round(sides[1], 2), round(sides[2], 2), round(sides[3], 2)))
    return out


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(_is_number(v) for v in box)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def overlap(a: Box, b: Box) -> float:
    """IoU of two boxes given as x, y, width, height."""
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    return wide * high / (a[2] * a[3] + b[2] * b[3] - wide * high)


def success(settings: Mapping[str, Any]) -> dict[str, float]:
    """Reward -> the value from which on an answer is right, where the configuration gives one."""
    listed = settings.get("rewards.components")
    specs = [spec for spec in listed if isinstance(spec, Mapping)] if isinstance(listed, list) else []
    return {str(spec.get("name")): float(spec["success"]) for spec in specs if _is_number(spec.get("success"))}


def is_right(
    gold: Sequence[Box],
    boxes: Sequence[Box],
    reward: Sequence[tuple[str, float | None]],
    success: Mapping[str, float] | None = None,
) -> bool | None:
    """With true boxes: each of them found at IoU 0.5, none too many. Else: the columns of the rewards in `success`
    reach its values; without those, every reward component that judges the answer is at least 0.5. None when there is
    nothing to judge by."""
    if gold:
        left = list(boxes)
        for box in gold:
            best = max(left, key=lambda b: overlap(box, b), default=None)
            if best is None or overlap(box, best) < OVERLAP:
                return False
            left.remove(best)
        return not left
    told = [(v, (success or {}).get(name.split("/")[0])) for name, v in reward if v is not None]
    if asked := [value >= least for value, least in told if least is not None]:
        return all(asked)
    judged = [value for name, value in reward if name not in BESIDE and value is not None]
    return all(value >= OVERLAP for value in judged) if judged else None


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


def scores(reward: Any) -> list[tuple[str, float | None]]:
    """Reward components by name; None where one is no number."""
    named = reward.items() if isinstance(reward, Mapping) else [] if reward is None else [("reward", reward)]
    return [(str(k), float(v) if _is_number(v) else None) for k, v in named]


def _answer(
    row: Mapping[str, Any],
    sample: Sample,
    file: Path,
    run: Path,
    pictures: Pictures,
    problems: list[str],
    success: Mapping[str, float],
) -> Answer:
    names = _drawn_names(row) if sample.drawn else [str(row["image"])] if row.get("image") else []
    found = _numbers(names, file, run, pictures, problems)
    filling = _numbers(_filling_names(row), file, run, pictures, problems) if sample.drawn else []
    reward, boxes = scores(row.get("reward")), corners(row.get("boxes"))
    known = [value for _, value in reward if value is not None]
    total = row["total"] if _is_number(row.get("total")) else sum(known) if known else None
    return Answer(
        step=_step(file),
        output=str(row.get("output", "")),
        boxes=boxes,
        reward=[(name, None if value is None else round(value, 4)) for name, value in reward],
        total=None if total is None else round(total, 4),
        right=None if sample.drawn else is_right(sample.gold, boxes, reward, success),
        picture=found[0] if found else None,
        pictures=found if sample.drawn else [],
        totals=_totals(row.get("totals"), len(found)) if sample.drawn else [],
        trajectory=_trajectory(row.get("trajectory"), file, problems),
        filling=filling if len(filling) == len(found) else [],  # not beside the wrong picture
        tokens=weighed(row.get("tokens"), file, problems),
    )


def _trajectory(lines: Any, file: Path, problems: list[str]) -> list[str]:
    """Lines of text; nothing where there is something else, told once a file."""
    if lines is None:
        return []
    if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
        return lines
    problem = f"{file.name}: a trajectory is no list of lines of text; shown without it"
    if problem not in problems:
        problems.append(problem)
    return []


def _numbers(names: Sequence[str], file: Path, run: Path, pictures: Pictures, problems: list[str]) -> list[int]:
    """Of the pictures that are there."""
    return [number for name in names if (number := _picture(name, file, run, pictures, problems)) is not None]


def _picture(name: str, file: Path, run: Path, pictures: Pictures, problems: list[str]) -> int | None:
    path = _find(name, file, run)
    if path is None:
        problems.append(f"{file.name}: picture {name} is not in the run folder; shown without it")
        return None
    try:
        return pictures.add(path)
    except UserError as error:
        problems.append(f"{file.name}: {error}; shown without it")
        return None


def _totals(values: Any, count: int) -> list[float | None]:
    """A reward for each picture; none of them where they do not fit (a picture is gone)."""
    if not isinstance(values, list) or len(values) != count:
        return []
    return [round(float(v), 4) if _is_number(v) else None for v in values]


def _find(name: str, file: Path, run: Path) -> Path | None:
    """A picture beside the sample file or below the run folder, never outside it."""
    for base in (file.parent, run):
        path = (base / name).resolve()
        if path.is_file() and path.is_relative_to(run.resolve()):
            return path
    return None
