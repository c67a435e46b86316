"""Arithmetic: one addition or multiplication. Loads no torch.

    27+58=   ->   85

The split is that of the two numbers whatever their order.
"""

from __future__ import annotations

import random
from typing import Any

from dlm.tasks.base import Choice, Options, Problem, Task, Whole, make_records
from mmrl.data.records import Record


def _draw(rng: random.Random, options: Options) -> Problem:
    a, b = (rng.randrange(10 ** options["digits"]) for _ in range(2))
    sign = {"add": "+", "mul": "*", "both": "+*"[rng.randrange(2)]}[options["op"]]
    right = str(a + b if sign == "+" else a * b)
    return Problem(
        key=f"{min(a, b)}{sign}{max(a, b)}",
        same=f"{a}{sign}{b}",
        short=f"{a}{sign}{b}=",
        question=f"What is {a}{sign}{b}?",
        answer=right,
        said=right,
        worked=f"{a}{sign}{b}={right}",
        hint="the number",
    )


TASK = Task("arithmetic", {"op": Choice(("add", "mul", "both")), "digits": Whole(3, 1, 18)}, _draw)


def make(split: str, *, seed: int = 0, n: int, **options: Any) -> list[Record]:
    """`op`: add, mul, both. `digits`: numbers go from 0 to 10^digits - 1. `style`: plain or d1. The answer is text."""
    return make_records(TASK, split, seed=seed, n=n, options=options)
