"""Video-R1 (arXiv 2503.21776): `Video-R1-260k.json`, `Video-R1-COT-165k.json`. Loads no torch.

    [{"problem_id": 2, "problem": ..., "data_type": "video" | "image", "problem_type": "multiple choice",
      "options": ["A. ...", "B. ...", ...], "process": "<think>...</think>", "solution": "<answer>A</answer>",
      "path": "./LLaVA-Video-178K/....mp4", "data_source": ...}, ...]

`process` is in the file for supervised starts only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrl.data.answers import inside_tags
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from video.data.files import list_of, name_of, rows_of, text_of
from video.data.layout import Ask, choice_record, indices_of, open_record, without_letters

#: Problem type -> task.
TASKS = {
    "multiple choice": "choice",
    "numerical": "number",
    "regression": "regression",
    "OCR": "ocr",
    "free-form": "open-ended",
}


def read(path: Path, videos: Path, *, ask: Ask = "mixed") -> Iterator[Record | str]:
    """Records by problem type: choice, number, regression, ocr, open-ended. Pictures become images, clips videos.

    response   process and solution, where there is a process.
    meta       question, options, type (the problem's type), data_source.
    Raises UserError that starts with the place.
    """
    for where, row in rows_of(path):
        name, kind = name_of(row, "problem_id", where), text_of(row, "problem_type", where)
        if kind not in TASKS:
            raise UserError(f"{where}: unknown problem_type {kind!r}{nearest(kind, TASKS)}")
        problem, solution = text_of(row, "problem", where), text_of(row, "solution", where)
        thought = row.get("process")
        shown = {
            "response": f"{thought.strip()}\n{solution}" if isinstance(thought, str) and thought.strip() else None,
            "meta": {"source": "video_r1", "type": kind, "data_source": row.get("data_source")},
            **_media(text_of(row, "data_type", where), str(videos / text_of(row, "path", where)), where),
        }
        answer = inside_tags(solution)
        if TASKS[kind] == "choice":
            options = without_letters([str(option) for option in list_of(row, "options", where)])
            right = indices_of(answer, len(options), where)
            yield choice_record(name, problem, options, right, ask=ask, where=where, **shown)
        else:
            yield open_record(name, TASKS[kind], problem, answer, ask=ask, **shown)


def _media(kind: str, path: str, where: str) -> dict[str, Any]:
    if kind not in ("video", "image"):
        raise UserError(f"{where}: unknown data_type {kind!r}{nearest(kind, ('video', 'image'))}")
    return {f"{kind}s": (path,)}
