"""Sorting: k digits into rising order. Loads no torch.

    sort 31415>   ->   11345

The split is that of the digits whatever their order, so no answer of `eval` is an answer of `train`.
"""

from __future__ import annotations

import random
from typing import Any

from dlm.tasks.base import Options, Problem, Task, Whole, make_records
from mmrl.data.records import Record


def _draw(rng: random.Random, options: Options) -> Problem:
    digits = [str(rng.randrange(10)) for _ in range(options["k"])]
    shown, right = "".join(digits), "".join(sorted(digits))
    counted = ", ".join(f"{right.count(d)} times {d}" for d in sorted(set(digits)))
    return Problem(
        key=right,
        same=shown,
        short=f"sort {shown}>",
        question=f"Write the digits {shown} in rising order, without blanks.",
        answer=right,
        said=right,
        worked=counted,
        hint="the sorted digits",
    )


TASK = Task("sorting", {"k": Whole(10, 1, 1000)}, _draw)


def make(split: str, *, seed: int = 0, n: int, **options: Any) -> list[Record]:
    """`k`: how many digits. `style`: plain or d1. The answer is a string of k digits."""
    return make_records(TASK, split, seed=seed, n=n, options=options)
