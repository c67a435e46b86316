"""CLEVRER (arXiv 1910.01442): `train.json`, `validation.json`. Loads no torch.

    [{"scene_index": 10000, "video_filename": "video_10000.mp4", "questions": [
        {"question_id": 0, "question_type": "descriptive", "question": ..., "answer": "yes", ...},
        {"question_id": 11, "question_type": "counterfactual", "question": ...,
         "choices": [{"choice_id": 0, "choice": ..., "answer": "correct" | "wrong"}, ...]}]}, ...]

Descriptive questions have one word for an answer; the others (explanatory, predictive, counterfactual) have options of
which any number is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmrl.data.records import Record
from mmrl.errors import UserError
from video.data.files import Row, list_of, name_of, rows_of, text_of
from video.data.layout import Ask, choice_record, first_existing, open_record

_MARKS = ("correct", "wrong")


def read(path: Path, videos: Path, *, ask: Ask = "mixed") -> Iterator[Record | str]:
    """Records, and a reason for each question that gives none: those without answers (test files) and those whose
    options are all wrong, which the soft reward cannot score.

    Task choice, or classification for descriptive ones. meta: question, options, type (the question's type).
    Raises UserError that starts with the place.
    """
    for where, scene in rows_of(path):
        number, file = name_of(scene, "scene_index", where), text_of(scene, "video_filename", where)
        clip = (_video(videos, number, file),)
        for question in list_of(scene, "questions", where):
            if not isinstance(question, dict):
                raise UserError(f"{where}: a question must be an object, got {question!r:.60}")
            yield _record(question, number, clip, ask, where)


def _record(row: Row, scene: str, clip: tuple[str], ask: Ask, where: str) -> Record | str:
    number = name_of(row, "question_id", where)
    where = f"{where}: question {number}"
    name, asked = f"{scene}_{number}", text_of(row, "question", where)
    meta = {"source": "clevrer", "type": text_of(row, "question_type", where)}
    if "choices" not in row:
        if row.get("answer") is None:
            return "no answer (a test file)"
        answer = name_of(row, "answer", where)
        return open_record(name, "classification", asked, answer, ask=ask, videos=clip, meta=meta)
    choices = list_of(row, "choices", where)
    options = [text_of(c, "choice", where) for c in choices if isinstance(c, dict)]
    marks = [c.get("answer") for c in choices if isinstance(c, dict)]
    if all(mark is None for mark in marks):
        return "no answer (a test file)"
    if any(mark not in _MARKS for mark in marks):
        raise UserError(f"{where}: the answer of a choice must be 'correct' or 'wrong', got {marks!r:.60}")
    right = [i for i, mark in enumerate(marks) if mark == "correct"]
    if not right:
        return "no option is right"
    return choice_record(name, asked, options, right, ask=ask, videos=clip, meta=meta, where=where)


def _video(videos: Path, scene: str, file: str) -> str:
    """The archives have folders of a thousand: video_10000-11000/video_10000.mp4."""
    files = [videos / file]
    if scene.isdigit():
        start = int(scene) // 1000 * 1000
        files.insert(0, videos / f"video_{start:05d}-{start + 1000:05d}" / file)
    return first_existing(files)
