"""The layout of TW-GRPO's own files (arXiv 2505.24718), CLEVRER counterfactual questions among them. Loads no torch.

    [{"problem": "why did ...\nA unwrap it\nB ...", "video": "/NExTQA/videos/4882821564.mp4",
      "solution": "<answer>B,C</answer>", "id": ..., "question": ..., "options": ["(A) unwrap it", ...], "type": "CW"},
     ...]

Only problem, video and solution must be there; without options and question they are read from the problem's lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mmrl.data.answers import inside_tags
from mmrl.data.records import Record
from mmrl.errors import UserError
from video.data.files import Row, name_of, rows_of, text_of
from video.data.layout import Ask, choice_record, first_existing, indices_of, letters, without_letters

_OPTION = re.compile(r"\(?([A-Z])[).:]?\s+(\S.*)")


def read(path: Path, videos: Path, *, ask: Ask = "mixed") -> Iterator[Record | str]:
    """Records of task choice. The video is taken at its own path if a file is there, else by its name below `videos`.

    meta: question, options, type, and segments (seconds) where the row has `glue`. Raises UserError that starts with
    the place.
    """
    for i, (where, row) in enumerate(rows_of(path), start=1):
        name = name_of(row, "id", where) if row.get("id") is not None else f"{path.stem}-{i}"
        question, options = _question(row, where)
        right = indices_of(inside_tags(text_of(row, "solution", where)), len(options), where)
        file = text_of(row, "video", where)
        clip = (first_existing([videos / PurePosixPath(file).name, videos / file.lstrip("/"), Path(file)]),)
        meta = {"source": "tw_grpo", "type": row.get("type") or "choice"}
        if row.get("glue") is not None:
            meta["segments"] = row["glue"]
        yield choice_record(name, question, options, right, ask=ask, videos=clip, meta=meta, where=where)


def _question(row: Row, where: str) -> tuple[str, list[str]]:
    """(question, options), from their own fields or from the lines of the problem."""
    given = row.get("options")
    if row.get("question") is not None and isinstance(given, list) and given:
        return text_of(row, "question", where), without_letters([str(option) for option in given])
    head, *lines = text_of(row, "problem", where).splitlines()
    found = [_OPTION.fullmatch(line.strip()) for line in lines]
    marks = "".join(match[1] for match in found if match)
    if not head.strip() or not found or None in found or marks != letters(len(found)):
        raise UserError(f"{where}: the problem must be a question and one option a line, 'A ...', 'B ...', in order")
    return head.strip(), [match[2].strip() for match in found if match]
