"""What an answer to lettered questions is worth, and what it is worth without looking. Pure functions, no torch.

exact, soft    means over the records of the rewards `choice_exact` and `choice` (TW-GRPO, arXiv 2505.24718):
               G right letters, P said; exact = [P = G]; soft = |P|/|G| where P is a subset of G, else 0.
blind_soft     soft of the same questions, each answered about another record's clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.parse import answer_text
from video.rewards.choice import letters_of, right_letters, soft_score

#: A constant answer names at most so many letters, unless it is the answer of some record.
MOST_LETTERS = 3


def exact_and_soft(outputs: Sequence[str], records: Sequence[Record]) -> dict[str, float]:
    """`exact` and `soft`, both in [0, 1]. Raises UserError without records and for answers that are no letters."""
    if not records:
        raise UserError("data.eval: no records to evaluate; add some")
    pairs = [(letters_of(answer_text(o)), right_letters(r)) for o, r in zip(outputs, records, strict=True)]
    return {
        "exact": sum(said == right for said, right in pairs) / len(pairs),
        "soft": sum(soft_score(said, right) for said, right in pairs) / len(pairs),
    }


def by_type(outputs: Sequence[str], records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """`exact_and_soft` of each `meta["type"]`, of the questions with one right letter ("single") and with several
    ("multiple"). Records without a type count under the latter two only."""
    rows = _rows_by_type(records)
    return {n: exact_and_soft([outputs[i] for i in k], [records[i] for i in k]) for n, k in sorted(rows.items())}


def _rows_by_type(records: Sequence[Record]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        many = "single" if len(right_letters(record)) == 1 else "multiple"
        for name in {many, *([str(record.meta["type"])] if "type" in record.meta else [])}:
            rows.setdefault(name, []).append(i)
    return rows


def blinded(records: Sequence[Record], *, seed: int = 0) -> list[Record]:
    """The same questions with the clips of other records; ids and everything else stay.

    One round through all records with as many clips, in an order drawn from `seed`: each takes the clips of the next
    one in that order whose clips are not its own. Raises UserError where a record finds no other clips.
    """
    found: list[Record | None] = [None] * len(records)
    rows: dict[int, list[int]] = {}
    for i, record in enumerate(records):
        rows.setdefault(len(record.videos), []).append(i)
    for some in rows.values():
        order = [some[k] for k in np.random.default_rng(seed).permutation(len(some))]
        for place, i in enumerate(order):
            around = (records[j].videos for j in order[place + 1 :] + order[:place])
            other = next((videos for videos in around if videos != records[i].videos), None)
            if other is None:
                raise UserError(f"record {records[i].id!r}: no other record has other clips to shuffle with; add some")
            found[i] = dataclasses.replace(records[i], videos=other)
    return [record for record in found if record is not None]


def constant_levels(records: Sequence[Record]) -> dict[str, float]:
    """What the best constant answer reaches: `exact`, `soft`, and `blind_soft`, equal to the latter since a constant
    does not look. Each metric gets its own best answer, chosen with the right ones in hand."""
    if not records:
        raise UserError("data.eval: no records to evaluate; add some")
    rights = [right_letters(record) for record in records]
    letters = sorted(frozenset().union(*rights))
    said = {frozenset(c) for k in range(1, MOST_LETTERS + 1) for c in combinations(letters, k)} | set(rights)
    soft = max(sum(soft_score(one, right) for right in rights) for one in said) / len(rights)
    exact = max(sum(one == right for right in rights) for one in said) / len(rights)
    return {"exact": exact, "soft": soft, "blind_soft": soft}


def constant_by_type(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """`exact` and `soft` of the best constant of each kind that `by_type` tells apart, chosen for it alone."""
    found = {}
    for name, rows in sorted(_rows_by_type(records).items()):
        levels = constant_levels([records[i] for i in rows])
        found[name] = {metric: levels[metric] for metric in ("exact", "soft")}
    return found


def typed_constant(records: Sequence[Record]) -> float:
    """Soft of the best constant of each `meta["type"]`: what reading the question alone can give."""
    rows: dict[Any, list[Record]] = {}
    for record in records:
        rows.setdefault(record.meta.get("type"), []).append(record)
    return sum(len(some) * constant_levels(some)["soft"] for some in rows.values()) / len(records)
