"""MATH (arXiv 2103.03874): competition problems. Reads the published layouts; loads no torch.

    {"problem": "...", "level": "Level 5", "type": "Algebra", "solution": "... \\\\boxed{\\\\frac{1}{2}}."}

One file, or the folder of the first release (a JSON file per problem). MATH-500 has `answer` and `subject` beside them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dlm.rewards.reading import boxed
from dlm.tasks.files import read_all, text_of
from dlm.tasks.layout import d1_prompt, d1_response
from mmrl.data.records import Record
from mmrl.errors import UserError

_TASK = "Solve this problem step by step and put the final answer in \\boxed{}.\n\n"


def read(path: str | Path, *, style: str = "d1") -> list[Record]:
    """Records of task `math`: the answer is what the last \\boxed{} of the solution holds (column `answer`, where there
    is one); `meta` has level (a number) and type, where given. Raises UserError."""
    return read_all(path, _record, style=style, name="math")


def _record(row: dict[str, Any], where: str, name: str, style: str) -> Record:
    problem = text_of(row, ("problem",), where).strip()
    solution = text_of(row, ("solution",), where).strip()
    given = row.get("answer")
    answer = given.strip() if isinstance(given, str) else boxed(solution)
    if not answer:
        raise UserError(f"{where}: the solution has no \\boxed{{}} with an answer")
    meta: dict[str, Any] = {"source": "math", "style": style}
    level = re.search(r"\d+", str(row.get("level", "")))
    if level:
        meta["level"] = int(level[0])
    kind = row.get("type", row.get("subject"))
    if isinstance(kind, str):
        meta["type"] = kind
    if style == "d1":
        prompt = d1_prompt(_TASK + problem, answer="\\boxed{...}")
        response = d1_response(solution, f"\\boxed{{{answer}}}")
    else:
        prompt, response = problem, solution
    return Record(name, "math", prompt, answer=answer, response=response, meta=meta)
