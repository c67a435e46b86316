"""Running sums: each step needs the result of the one before it. Loads no torch.

    3+5+4+9=          ->   3+5=8;8+4=12;12+9=21        form full
    3+5+4+9 mod 10=   ->   8;2;1                       form results

Positions depend on each other in a chain, so filling many at once costs accuracy unless the model has learnt the whole
sum. With a modulus every completion of form full has the same length.
"""

from __future__ import annotations

import random
from typing import Any

from dlm.tasks.base import Choice, Options, Problem, Task, Whole, make_records
from mmrl.data.records import Record


def _draw(rng: random.Random, options: Options) -> Problem:
    mod, size = options["mod"], min(10 ** options["digits"], options["mod"] or 10**18)
    numbers = [rng.randrange(size) for _ in range(options["steps"] + 1)]
    total, full, results = numbers[0], [], []
    for number in numbers[1:]:
        after = (total + number) % mod if mod else total + number
        full.append(f"{total}+{number}={after}")
        results.append(str(after))
        total = after
    steps = full if options["form"] == "full" else results
    asked = "+".join(map(str, numbers)) + (f" mod {mod}" if mod else "")
    return Problem(
        key="+".join(map(str, numbers)),
        same=asked,
        short=f"{asked}=",
        question=f"Work out {asked} from left to right, one addition a step, steps parted by semicolons.",
        answer=str(total),
        said=str(total),
        worked=";".join(steps),
        plain=";".join(steps),
        hint="the final number",
        meta={"steps": steps},
    )


TASK = Task(
    "sums",
    {
        "steps": Whole(4, 1, 100),
        "digits": Whole(1, 1, 9),
        "mod": Whole(0, 2, 1_000_000_000, also=(0,)),
        "form": Choice(("full", "results")),
    },
    _draw,
)


def make(split: str, *, seed: int = 0, n: int, **options: Any) -> list[Record]:
    """`steps`: additions. `digits`: numbers go from 0 to 10^digits - 1 (and below `mod`). `mod`: 0 = none.
    `form`: full writes each addition, results only what it gives. `style`: plain or d1.

    The answer is the final number as text; `meta["steps"]` lists the steps as they should be written.
    """
    return make_records(TASK, split, seed=seed, n=n, options=options)
