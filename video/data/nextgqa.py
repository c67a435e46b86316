"""NExT-GQA (arXiv 2309.01327): `val.csv`, `test.csv`, `train.csv`. Loads no torch.

    video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4

The answer is the text of an option; NExT-QA's own files (column `video`) give its number instead. Time spans of the
evidence stand in `gsub_val.json`, `gsub_test.json`: {video: {"duration", "location": {qid: [[start, end], ...]}}}, in
seconds; folders of the videos in `map_vid_vidorID.json`: {video: "1106/4882821564"}. Both are read when they lie beside
the CSV.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from video.data.files import Row, json_object, name_of, rows_of, text_of
from video.data.layout import ALIKE, Ask, choice_record, first_existing, open_record

OPTIONS = ("a0", "a1", "a2", "a3", "a4")
TASKS = ("choice", "grounding-time")


def read(path: Path, videos: Path, *, ask: Ask = "mixed", task: str = "choice") -> Iterator[Record | str]:
    """Records, and a reason for each row that gives none.

    task   choice: the letter of the right option; grounding-time: the segments that show the answer, from the spans.
    meta   question, options, type (CW, CH, TN, TC, TP), and segments, duration where spans are given.
    Raises UserError that starts with the place.
    """
    if task not in TASKS:
        raise UserError(f"--task: unknown task {task!r}{nearest(task, TASKS)}")
    spans = _beside(path, f"gsub_{path.stem}.json")
    folders = _beside(path, "map_vid_vidorID.json")
    if task == "grounding-time" and not spans:
        raise UserError(f"{path}: grounding needs the spans; put gsub_{path.stem}.json beside it")
    for where, row in rows_of(path):
        video = name_of(row, "video_id" if "video_id" in row else "video", where)
        name = f"{video}_{name_of(row, 'qid', where)}"
        files = [videos / f"{video}.mp4"]
        if video in folders:
            files.insert(0, videos / f"{folders[video]}.mp4")
        clip = (first_existing(files),)
        meta: dict[str, Any] = {"source": "nextgqa", "type": text_of(row, "type", where)}
        meta |= _evidence(spans, video, str(row["qid"]), where)
        question, options = text_of(row, "question", where), [text_of(row, key, where) for key in OPTIONS]
        right = _right(row, options, where)
        if task == "choice" and options.count(options[right]) > 1:
            yield ALIKE
        elif task == "choice":
            yield choice_record(name, question, options, [right], ask=ask, videos=clip, meta=meta, where=where)
        elif "segments" not in meta:
            yield "no time span"
        else:
            asked = f"When does the video show this? {question} (answer: {options[right]})"
            yield open_record(name, task, asked, meta["segments"], ask=ask, videos=clip, meta=meta)


def _beside(path: Path, name: str) -> Row:
    file = path.parent / name
    return json_object(file) if file.is_file() else {}


def _right(row: Mapping[str, Any], options: list[str], where: str) -> int:
    answer = text_of(row, "answer", where)
    if answer.isdigit() and "video_id" not in row and int(answer) < len(options):
        return int(answer)
    if answer in options:
        return options.index(answer)
    raise UserError(f"{where}: the answer {answer!r:.60} must be the text of one of the options")


def _evidence(spans: Row, video: str, qid: str, where: str) -> dict[str, Any]:
    if video not in spans:
        return {}
    try:
        segments = spans[video]["location"].get(qid)
        return {} if segments is None else {"segments": segments, "duration": spans[video]["duration"]}
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{where}: the spans of video {video} have no 'location' and 'duration'") from None
