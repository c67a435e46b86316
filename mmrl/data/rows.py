"""One row of a file -> one Record, with every fault as a UserError that starts with the place. Loads no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mmrl.data.answers import box_answer, box_answers, count_answer, infer_task, inside_tags, label_answers
from mmrl.data.boxtext import Box
from mmrl.data.conversations import Dialogue, read_dialogue
from mmrl.data.frames import check_frame, extent
from mmrl.data.images import image_size
from mmrl.data.messages import check_messages, without_nulls
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest

#: What a row must have besides its prompt: an answer (rewards), a response (imitation), or nothing (a prompt is enough:
#: models that make pictures).
Require = Literal["answer", "response", "prompt"]
#: Every column a row may have; the second line are other names for columns of the first.
FIELDS = ("id", "task", "prompt", "images", "videos", "answer", "response", "frame", "meta")
ALIASES = ("image", "image_path", "video", "problem", "solution", "conversations")
_KEPT_IN_META = ("accu_reward_method",)
#: The task of rows that are only prompts: make a picture. Their further columns are what rewards read of them.
PICTURE_TASK = "image"
#: A further column this much like a known one is a slip of the pen.
_ALIKE = 0.85
_TOO_MANY = {"images": ("image", "image_path"), "videos": ("video",), "prompt": ("problem", "conversations")}


def make_record(row: Any, *, where: str, default_id: str, folder: Path, require: Require) -> Record:
    """The Record of a row. `folder`: what its paths are relative to."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected one object {{...}} a line, got {type(row).__name__}")
    bare = require == "prompt" or row.get("task") == PICTURE_TASK
    own = _check_fields(row, where, open_ended=bare)
    row = {k: v for k, v in row.items() if v is not None}
    name = _id(row.get("id", default_id), where)
    where = f"{where} (record {name!r})" if "id" in row else where
    dialogue = read_dialogue(row["conversations"], where) if "conversations" in row else None
    prompt = _prompt(row, dialogue, where)
    if bare and not isinstance(prompt, str):
        raise UserError(f"{where}: the prompt of a picture is plain text, not chat messages")
    frame = str(row.get("frame", "norm1000"))
    check_frame(frame, where)
    images = _media(row, "images", folder, where) or tuple(
        _path(p, folder, where, "picture") for p in (dialogue.images if dialogue else ())
    )
    videos = _media(row, "videos", folder, where)
    if dialogue:
        _check_marks(dialogue, images, videos, where)
    if isinstance(prompt, list):
        check_messages(prompt, n_images=len(images), n_videos=len(videos), where=where)
        prompt = without_nulls(prompt)
    answer, response, task = _answer(row, dialogue, where, require)
    record = Record(name, task, prompt, images, videos, answer, response, frame, _meta(row, own, where))
    if answer is not None:
        check_answer(record, where)
    return record


def _id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{where}: id must be text or a whole number, got {value!r:.60}")
    return str(value)


def _check_fields(row: Mapping[str, Any], where: str, *, open_ended: bool) -> list[str]:
    """The columns that go to `meta` as they are: with `open_ended`, all that are not like a known one."""
    known = (*FIELDS, *ALIASES, *_KEPT_IN_META)
    own = [key for key in row if key not in known]
    for key in own:
        if not open_ended or get_close_matches(str(key), known, n=1, cutoff=_ALIKE):
            raise UserError(f"{where}: unknown field {key!r}{nearest(str(key), known)}; own fields belong under 'meta'")
    for key, others in _TOO_MANY.items():
        given = [k for k in (key, *others) if row.get(k) is not None]
        if len(given) > 1:
            raise UserError(f"{where}: {given[0]!r} and {given[1]!r} mean the same; give one of them")
    return own


def _prompt(row: Mapping[str, Any], dialogue: Dialogue | None, where: str) -> Any:
    prompt = dialogue.prompt if dialogue else row.get("prompt", row.get("problem"))
    if prompt is None:
        raise UserError(f'{where}: no prompt; add "prompt" (or "problem", or "conversations")')
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UserError(f"{where}: the prompt is empty")
        return prompt
    if not isinstance(prompt, list) or not prompt:
        raise UserError(f"{where}: prompt must be text, or messages [{{'role': ..., 'content': ...}}, ...]")
    return prompt


def _media(row: Mapping[str, Any], kind: str, folder: Path, where: str) -> tuple[Any, ...]:
    key = next((k for k in (kind, *_TOO_MANY[kind]) if k in row), None)
    if key is None:
        return ()
    items = row[key] if isinstance(row[key], (list, tuple)) else [row[key]]
    return tuple(_path(item, folder, where, "picture" if kind == "images" else "video") for item in items)


def _path(item: Any, folder: Path, where: str, what: str) -> Any:
    """Absolute path of an existing file; PIL pictures (from data sets) pass."""
    if isinstance(item, Image.Image):
        return item
    if not isinstance(item, str) or not item:
        raise UserError(f"{where}: a {what} must be a file path, got {item!r:.60}")
    if item.startswith(("http://", "https://", "data:", "s3://")):
        raise UserError(f"{where}: {what} {item:.60}: only local files are read; download it and give its path")
    path = Path(os.path.normpath(folder / Path(item.removeprefix("file://")).expanduser()))
    try:
        found = path.is_file()
    except (OSError, ValueError):
        found = False
    if not found:
        raise UserError(f"{where}: missing {what} {path}; paths are relative to the folder of the data file")
    return str(path)


def _check_marks(dialogue: Dialogue, images: tuple[Any, ...], videos: tuple[Any, ...], where: str) -> None:
    for kind, have in (("image", len(images)), ("video", len(videos))):
        asked = dialogue.placeholders[kind]
        if asked and asked != have:
            raise UserError(f"{where}: the conversation has {asked} <{kind}> marks, the record {have} {kind}s")


def _answer(
    row: Mapping[str, Any], dialogue: Dialogue | None, where: str, require: Require
) -> tuple[Any, str | None, str]:
    """(answer, response, task). An official `solution` gives all three; an explicit task wins."""
    official = row.get("solution", dialogue.answer if dialogue else None)
    answer = row.get("answer", official)
    response = row.get("response", official)
    if response is not None and not isinstance(response, str):
        response = None if "response" not in row else response
    if "response" in row and not isinstance(response, str):
        raise UserError(f"{where}: response must be text, got {type(response).__name__}")
    if require == "answer" and answer is None:
        raise UserError(f'{where}: record without answer; add "answer" (or "solution")')
    if require == "response" and response is None:
        raise UserError(f'{where}: record without response; supervised training imitates "response"')
    task = row.get("task")
    if task is None and require == "prompt":
        task = PICTURE_TASK
    elif task is None:
        task = infer_task(answer) if answer is not None else "text"
    if not isinstance(task, str) or not task:
        raise UserError(f"{where}: task must be a name, got {task!r}")
    if "answer" not in row and isinstance(answer, str):
        answer = _official_answer(answer, task, where)
    return answer, response, task


def _official_answer(text: str, task: str, where: str) -> Any:
    """`<answer>...</answer>` as boxes, a box, a number or a label."""
    if task == "detection":
        found = box_answers(text, where)
        return [{"Position": list(d.box)} | ({"label": d.label} if d.label is not None else {}) for d in found]
    if task == "grounding":
        return list(box_answer(text, where))
    return inside_tags(text)


def check_answer(record: Record, where: str) -> None:
    """The answer fits its task, and its boxes fit their frame. Tasks of the user's own are not looked into."""
    if record.task == "detection":
        for i, d in enumerate(box_answers(record.answer, where)):
            _check_box(d.box, record, f"{where}: answer[{i}]")
    elif record.task == "grounding":
        _check_box(box_answer(record.answer, where), record, f"{where}: answer")
    elif record.task == "classification":
        label_answers(record.answer, where)
    elif record.task == "counting":
        count_answer(record.answer, where)


def _check_box(box: Box, record: Record, where: str) -> None:
    x1, y1, x2, y2 = box
    for low, high, axis in ((x1, x2, "x"), (y1, y2, "y")):
        if high < low:
            raise UserError(
                f"{where}: {axis}2 < {axis}1 in {_show(box)}; write corners as [x1, y1, x2, y2] (not width and height)"
            )
    width, height = _limits(record, where)
    if min(x1, y1) < 0 or x2 > width or y2 > height:
        raise UserError(
            f"{where}: box {_show(box)} is outside its frame {record.frame} (0..{width:g} by 0..{height:g}); "
            'mend the box or set "frame"'
        )


def _limits(record: Record, where: str) -> tuple[float, float]:
    """Model-input pixels have no known limit before a model is chosen."""
    if record.frame == "pixel_model_input":
        return math.inf, math.inf
    if record.frame != "pixel_original":
        return extent(record.frame, original_size=None, model_size=None, where=where)
    if not record.images:
        raise UserError(f'{where}: frame pixel_original needs a picture; add "image" or use frame norm1000')
    first = record.images[0]
    try:
        return first.size if isinstance(first, Image.Image) else image_size(first)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _show(box: Box) -> str:
    return "[" + ", ".join(f"{v:g}" for v in box) + "]"


def _meta(row: Mapping[str, Any], own: Sequence[str], where: str) -> dict[str, Any]:
    meta = row.get("meta", {})
    if not isinstance(meta, dict):
        raise UserError(f"{where}: meta must be an object, got {type(meta).__name__}")
    for key in own:
        if key in meta:
            raise UserError(f"{where}: {key!r} stands beside 'meta' and in it; keep one")
    return {**meta, **{k: row[k] for k in (*_KEPT_IN_META, *own) if k in row}}
