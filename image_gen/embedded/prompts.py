"""Prompts of the embedded image model, and real pictures for them. Loads no torch.

digits:class     ten prompts, "a seven", for one cell of 8 x 8 pixels.
digits:compose   the wide canvas of three cells: "a seven", "two sevens", "three sevens", "a three left of a five".
                 Some combinations of number and digit, and of digit and digit, are kept for split=eval.

`meta` of the second task holds a specification as GenEval writes it (arXiv 2310.11513): tag, include, exclude. Stricter
than GenEval's: `exclude` names every other digit too, so that nothing else may stand on the canvas.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from image_gen.embedded import canvas
from image_gen.embedded.words import DIGITS, PLURALS
from mmrl.core.streams import stream_seed
from mmrl.data.names import read_options
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest

TASKS = {"class": "digit", "compose": "composition"}
SPLITS = ("train", "eval")
OPTIONS = {"class": ("demos", "seed"), "compose": ("split", "demos", "seed")}


def one(digit: int) -> str:
    """ "a seven", "an eight"."""
    return f"{'an' if digit == 8 else 'a'} {DIGITS[digit]}"


def several(number: int, digit: int) -> str:
    return one(digit) if number == 1 else f"{DIGITS[number]} {PLURALS[digit]}"


def class_records() -> list[Record]:
    """ "a zero" .. "a nine"; answer: the digit."""
    return [
        Record(id=f"digits:class:{d}", task="digit", prompt=one(d), answer=d, meta={"tag": "digit"}) for d in range(10)
    ]


def composition_records(split: str) -> list[Record]:
    """All prompts of one split. answer: {"digits": from left to right, or of any order where they are equal}."""
    records = []
    for number, digit in product(range(1, canvas.CELLS + 1), range(10)):
        if counted_split(number, digit) == split:
            name = "counting" if number > 1 else "single_object"
            include: list[dict[str, Any]] = [{"class": DIGITS[digit], "count": number}]
            records.append(_record(several(number, digit), [digit] * number, name, include))
    for left, right in product(range(10), range(10)):
        if left != right and placed_split(left, right) == split:
            include = [
                {"class": DIGITS[right], "count": 1},
                {"class": DIGITS[left], "count": 1, "position": ["left of", 0]},
            ]
            records.append(_record(f"{one(left)} left of {one(right)}", [left, right], "position", include))
    return records


def counted_split(number: int, digit: int) -> str:
    """Two digits of each number above one are kept: 4 of 30 prompts."""
    return "eval" if number > 1 and (digit + 3 * number) % 5 == 0 else "train"


def placed_split(left: int, right: int) -> str:
    """A fifth of the ordered pairs is kept: 18 of 90 prompts. Every digit is trained on both sides."""
    return "eval" if (left + 3 * right) % 5 == 0 else "train"


def _record(prompt: str, digits: list[int], tag: str, include: list[dict[str, Any]]) -> Record:
    asked = {one["class"]: one["count"] for one in include}
    exclude = [{"class": word, "count": asked.get(word, 0) + 1} for word in DIGITS]
    return Record(
        id=f"digits:compose:{prompt.replace(' ', '-')}",
        task="composition",
        prompt=prompt,
        answer={"digits": digits},
        meta={"tag": tag, "include": include, "exclude": exclude},
    )


def demonstrations(records: Sequence[Record], *, n: int, seed: int) -> list[Record]:
    """n pictures of the training part, prompts in turn; `images` holds the picture. Picture i depends on seed and i."""
    from PIL import Image

    found = []
    for i in range(n):
        record = records[i % len(records)]
        rng = np.random.default_rng(stream_seed("flow demonstrations", record.id, seed, i))
        cells = [record.answer] if record.task == "digit" else canvas.arrange(record.answer["digits"])
        grey = np.round(255 * canvas.draw(cells, part="train", rng=rng)).astype(np.uint8)
        picture = Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2))
        found.append(Record(**{**vars(record), "id": f"{record.id}:{seed}:{i}", "images": (picture,)}))
    return found


# ---- names ---------------------------------------------------------------------------------------------------------


def builtin(name: str) -> list[Record]:
    """`digits:class` or `digits:compose`, with options `?key=value&...`.

    split (compose): train, the default, or eval. demos: that many real pictures with their prompts, for recipe `sft`,
    drawn with `seed`. Raises UserError for anything else.
    """
    kind, colon, rest = name.partition(":")
    task, question, query = rest.partition("?")
    if kind != "digits" or not colon or task not in TASKS:
        hint = nearest(task, TASKS) if kind == "digits" else ""
        raise UserError(f"data: unknown embedded prompts {name!r}{hint}; use digits:class or digits:compose")
    options = _options(name, task, query if question else None)
    split = options.get("split", "train")
    if split not in SPLITS:
        raise UserError(f"data: {name!r}: unknown split {split!r}{nearest(split, SPLITS)}")
    records = class_records() if task == "class" else composition_records(split)
    if "demos" not in options:
        if "seed" in options:
            raise UserError(f"data: {name!r}: seed has no effect without demos; set both or neither")
        return records
    if split == "eval":
        raise UserError(f"data: {name!r}: no pictures of the prompts kept for eval; leave demos or split=eval out")
    return demonstrations(records, n=_number(name, "demos", options["demos"]), seed=int(options.get("seed", "0")))


def _options(name: str, task: str, query: str | None) -> dict[str, str]:
    options = read_options(name, query, OPTIONS[task])
    if "seed" in options and not re.fullmatch(r"\d{1,9}", options["seed"]):
        raise UserError(f"data: {name!r}: seed must be a whole number, got {options['seed']!r}")
    return options


def _number(name: str, key: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text) or int(text) < 1:
        raise UserError(f"data: {name!r}: {key} must be a whole number from 1 to 999999, got {text!r}")
    return int(text)


# ---- chance --------------------------------------------------------------------------------------------------------


def chance(records: Sequence[Record]) -> dict[str, float]:
    """The judge's score of the best constant picture, for records of the embedded tasks; else empty."""
    if not records or any(r.task not in TASKS.values() for r in records):
        return {}
    digits = [r for r in records if r.task == "digit"]
    wide = [r for r in records if r.task == "composition"]
    if digits and wide:  # one picture has one size
        return {}
    if digits:
        return {"judge": max(sum(r.answer == d for r in digits) for d in range(10)) / len(digits)}
    wanted = Counter(tuple(r.answer["digits"]) for r in wide)
    return {"judge": wanted.most_common(1)[0][1] / len(wide)}
