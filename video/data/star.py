"""STAR (arXiv 2405.09711): `STAR_train.json`, `STAR_val.json`. Loads no torch.

    [{"question_id": "Interaction_T1_13", "question": ..., "video_id": "47DX5", "start": 12.5, "end": 19.3,
      "answer": "The closet/cabinet.", "choices": [{"choice_id": 0, "choice": ...}, ...], ...}, ...]

The answer is the text of a choice. A question is about the seconds from start to end of a video of Charades.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrl.data.records import Record
from mmrl.errors import UserError
from video.data.files import list_of, name_of, rows_of, text_of
from video.data.layout import ALIKE, Ask, choice_record, first_existing

TYPES = ("Interaction", "Sequence", "Prediction", "Feasibility")


def read(path: Path, videos: Path, *, ask: Ask = "mixed", times: int = 0) -> Iterator[Record | str]:
    """Records, and a reason for each row that gives none.

    times   > 0: so many moments, evenly from start to end, as meta `times`, which `inputs.frames: times` shows the
            model. 0: the file is taken whole; cut it to start and end yourself and name it after the question.
    meta    question, options, type (Interaction, Sequence, Prediction, Feasibility), start, end.
    Raises UserError that starts with the place.
    """
    for where, row in rows_of(path):
        name = name_of(row, "question_id", where)
        choices = list_of(row, "choices", where)
        options = [text_of(c, "choice", where) for c in choices if isinstance(c, dict)]
        if not row.get("answer"):
            yield "no answer (a test file)"
            continue
        answer = text_of(row, "answer", where)
        if answer not in options:
            raise UserError(f"{where}: the answer {answer!r:.60} must be the text of one of the choices")
        if options.count(answer) > 1:
            yield ALIKE
            continue
        start, end = _second(row.get("start"), where), _second(row.get("end"), where)
        if end <= start:
            raise UserError(f"{where}: start {start:g} must come before end {end:g}")
        meta: dict[str, Any] = {"source": "star", "type": name.partition("_")[0], "start": start, "end": end}
        whole = videos / f"{name_of(row, 'video_id', where)}.mp4"
        clip = str(whole) if times else first_existing([videos / f"{name}.mp4", whole])
        if times:
            meta["times"] = [round(start + (end - start) * i / max(1, times - 1), 3) for i in range(times)]
        question = text_of(row, "question", where)
        yield choice_record(
            name, question, options, [options.index(answer)], ask=ask, videos=(clip,), meta=meta, where=where
        )


def _second(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise UserError(f"{where}: start and end must be seconds of at least 0, got {value!r:.40}")
    return float(value)
