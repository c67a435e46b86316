"""Countdown: an expression of all the numbers, each used once, that reaches the target. Loads no torch.

    make 22 from 7,3,5:   ->   3*5+7

Solvable by construction: the target is the value of a random expression, whose every intermediate value is a whole
number of at least 0.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from dlm.tasks.base import Options, Problem, Task, Whole, make_records
from dlm.tasks.files import read_all
from dlm.tasks.layout import d1_prompt
from mmrl.data.records import Record
from mmrl.errors import UserError

#: value, text, how tightly its outermost sign binds: 0 for + and -, 1 for * and /, 2 for a number.
Part = tuple[int, str, int]


def _draw(rng: random.Random, options: Options) -> Problem:
    while True:
        numbers = [rng.randrange(1, options["largest"] + 1) for _ in range(options["numbers"])]
        parts: list[Part] = [(v, str(v), 2) for v in numbers]
        while len(parts) > 1:
            a = parts.pop(rng.randrange(len(parts)))
            b = parts.pop(rng.randrange(len(parts)))
            parts.append(_join(a, b, "+-*/"[rng.randrange(4)]))
        target, text, _ = parts[0]
        if 1 <= target <= options["top"]:
            return _problem(numbers, target, text)


def _join(a: Part, b: Part, sign: str) -> Part:
    """a sign b; where that leaves the whole numbers from 0 on, the sign is turned into one that does not."""
    if sign == "-" and a[0] < b[0]:
        a, b = b, a
    if sign == "/" and (b[0] == 0 or a[0] % b[0]):
        sign = "*"
    if sign in "+-":
        value, binds = (a[0] + b[0] if sign == "+" else a[0] - b[0]), 0
    else:
        value, binds = (a[0] * b[0] if sign == "*" else a[0] // b[0]), 1
    left = f"({a[1]})" if a[2] < binds else a[1]
    right = f"({b[1]})" if b[2] < binds or (sign in "-/" and b[2] == binds) else b[1]
    return value, f"{left}{sign}{right}", binds


def _problem(numbers: list[int], target: int, text: str) -> Problem:
    return Problem(
        key=f"{','.join(map(str, sorted(numbers)))}={target}",
        same=f"{','.join(map(str, sorted(numbers)))}={target}",
        short=_short(numbers, target),
        question=question(numbers, target),
        answer={"numbers": numbers, "target": target},
        said=text,
        worked=f"{text}={target}",
        hint=HINT,
    )


HINT = "the expression alone"


def _short(numbers: list[int], target: int) -> str:
    return f"make {target} from {','.join(map(str, numbers))}:"


def question(numbers: list[int], target: int) -> str:
    """The d1 wording; shared with the reader of published files."""
    return (
        f"Numbers: {', '.join(map(str, numbers))}. Target: {target}. Find an expression with the value {target} that "
        "uses every number exactly once, with +, -, *, / and brackets. Give it without an equals sign."
    )


TASK = Task("countdown", {"numbers": Whole(3, 2, 8), "largest": Whole(20, 1, 999), "top": Whole(99, 1, 99999)}, _draw)


def make(split: str, *, seed: int = 0, n: int, **options: Any) -> list[Record]:
    """`numbers`: how many. `largest`: of them. `top`: largest target. `style`: plain or d1.

    The answer is `{"numbers": [...], "target": t}`; the split is that of the numbers in any order with the target.
    """
    return make_records(TASK, split, seed=seed, n=n, options=options)


def read(path: str | Path, *, style: str = "d1") -> list[Record]:
    """Records of published files: columns `nums` and `target` (Countdown-Tasks-3to4), or `input` "30,100,93" and
    `output` (the test set of d1). They have no response. Raises UserError."""
    return read_all(path, _record, style=style, name="countdown")


def _record(row: dict[str, Any], where: str, name: str, style: str) -> Record:
    given, aim = row.get("nums", row.get("input")), row.get("target", row.get("output"))
    told = re.findall(r"\d+", given) if isinstance(given, str) else given
    try:
        numbers, target = [int(n) for n in told or ()], int(aim)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        numbers, target = [], 0
    if not numbers:
        raise UserError(f"{where}: expected columns nums and target (or input and output), got {row!r:.80}")
    prompt = d1_prompt(question(numbers, target), answer=HINT) if style == "d1" else _short(numbers, target)
    answer = {"numbers": numbers, "target": target}
    return Record(name, "countdown", prompt, answer=answer, meta={"source": "countdown", "style": style})
