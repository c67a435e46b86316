"""GSM8K (arXiv 2110.14168): grade school word problems. Reads the published layout; loads no torch.

{"question": "...", "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips ...\\n#### 72"}
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dlm.tasks.files import read_all, text_of
from dlm.tasks.layout import d1_prompt, d1_response
from mmrl.data.records import Record
from mmrl.errors import UserError

_CALCULATOR = re.compile(r"<<[^<>]*>>")


def read(path: str | Path, *, style: str = "d1") -> list[Record]:
    """Records of task `gsm8k`: the answer is the number behind ####, as it is written there; the response is the
    published solution without its calculator marks.

    style d1: instructions and tags; plain: the bare question, and the solution with its #### line. Raises UserError.
    """
    return read_all(path, _record, style=style, name="gsm8k")


def _record(row: dict[str, Any], where: str, name: str, style: str) -> Record:
    question = text_of(row, ("question",), where).strip()
    solution, mark, answer = _CALCULATOR.sub("", text_of(row, ("answer",), where)).rpartition("####")
    solution, answer = solution.strip(), answer.strip()
    if not mark or not answer:
        raise UserError(f"{where}: the answer has no final number behind ####")
    if style == "d1":
        prompt, response = d1_prompt(question), d1_response(solution, answer)
    else:
        prompt, response = question, f"{solution}\n#### {answer}"
    return Record(name, "gsm8k", prompt, answer=answer, response=response, meta={"source": "gsm8k", "style": style})
