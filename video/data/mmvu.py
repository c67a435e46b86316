"""MMVU (arXiv 2501.12380): `validation.json`. Loads no torch.

    [{"id": "validation_1", "video": "https://.../videos/Chemistry/0.mp4", "question_type": "multiple-choice",
      "question": ..., "choices": {"A": ..., ..., "E": ...}, "answer": "C", "metadata": {"subject": ..., ...}}, ...]

Open-ended questions ("question_type": "open-ended") have blank choices and a text for an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from video.data.files import Row, name_of, rows_of, text_of
from video.data.layout import Ask, choice_record, first_existing, indices_of, letters, open_record

TYPES = ("multiple-choice", "open-ended")


def read(path: Path, videos: Path, *, ask: Ask = "mixed") -> Iterator[Record | str]:
    """Records of task choice or open-ended. The video is SUBJECT/NUMBER.mp4 below `videos`, as in its address.

    meta: question, options, type (the question's type), subject. Raises UserError that starts with the place.
    """
    for where, row in rows_of(path):
        name, kind = name_of(row, "id", where), text_of(row, "question_type", where)
        question, answer = text_of(row, "question", where), name_of(row, "answer", where)
        address = PurePosixPath(text_of(row, "video", where))
        clip = (first_existing([videos / address.parent.name / address.name, videos / address.name]),)
        about = row.get("metadata")
        meta = {"source": "mmvu", "type": kind, "subject": about.get("subject") if isinstance(about, dict) else None}
        if kind == "open-ended":
            yield open_record(name, kind, question, answer, ask=ask, videos=clip, meta=meta)
        elif kind == "multiple-choice":
            options = _options(row, where)
            right = indices_of(answer, len(options), where)
            yield choice_record(name, question, options, right, ask=ask, videos=clip, meta=meta, where=where)
        else:
            raise UserError(f"{where}: unknown question_type {kind!r}{nearest(kind, TYPES)}")


def _options(row: Row, where: str) -> list[str]:
    """The choices that have a text; they must be the first of A, B, C, ..."""
    choices = row.get("choices")
    if not isinstance(choices, dict):
        raise UserError(f"{where}: 'choices' must be an object of letters, got {choices!r:.60}")
    kept = {key: value for key, value in sorted(choices.items()) if isinstance(value, str) and value.strip()}
    if "".join(kept) != letters(len(kept)):
        raise UserError(f"{where}: the choices with text must be A, B, C, ... without a gap, got {list(kept)!r:.60}")
    return [value.strip() for value in kept.values()]
