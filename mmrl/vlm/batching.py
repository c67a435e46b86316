"""Split rows into bundles (prompts that run together) and pieces (rows that run together). Loads no model.

Axes: n rows of a piece. A token budget bounds what lives at once; whole groups (or the whole batch) stay in one piece
where the scope asks for it, whatever the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmrl.training.policy import Bundle, Piece, Scope
from mmrl.vlm.encode import Prompt
from mmrl.vlm.rows import Row


@dataclass
class Chunk:
    """Private data of a piece.

    prompts    of the whole bundle; row i of the piece continues `prompts[prompt_n[i]]`.
    group_n    the group of each row; members of a group have equal numbers.
    width      T of the tables to return.
    """

    rows: list[Row]
    prompts: list[Prompt]
    prompt_n: list[int]
    group_n: list[int]
    width: int


def units(rows: Sequence[Row], groups: Sequence[int], scope: Scope) -> list[list[int]]:
    """Rows that must not be separated."""
    if scope == "batch":
        return [list(range(len(rows)))]
    if scope == "group":
        found: dict[int, list[int]] = {}
        for i, g in enumerate(groups):
            found.setdefault(int(g), []).append(i)
        return list(found.values())
    return [[i] for i in range(len(rows))]


def families(rows: Sequence[Row], parts: list[list[int]]) -> list[list[list[int]]]:
    """Units that share a prompt, directly or through others: they belong into one bundle."""
    parent = list(range(len(parts)))

    def root(u: int) -> int:
        while parent[u] != u:
            parent[u] = parent[parent[u]]
            u = parent[u]
        return u

    owner: dict[int, int] = {}
    for u, unit in enumerate(parts):
        for i in unit:
            other = owner.setdefault(id(rows[i].prompt), u)
            parent[root(u)] = root(other)
    found: dict[int, list[list[int]]] = {}
    for u, unit in enumerate(parts):
        found.setdefault(root(u), []).append(unit)
    return list(found.values())


def distinct_prompts(rows: Sequence[Row], index: Sequence[int]) -> list[Prompt]:
    seen: dict[int, Prompt] = {}
    for i in index:
        seen.setdefault(id(rows[i].prompt), rows[i].prompt)
    return list(seen.values())


def _flat(parts: list[list[int]]) -> list[int]:
    return [i for unit in parts for i in unit]


def plan(
    rows: Sequence[Row], groups: Sequence[int], *, width: int, scope: Scope, form: str, budget: int
) -> list[Bundle]:
    """Bundles for `form` cache | packed | off, each piece within `budget` tokens where the scope allows.

    A row costs its prompt plus its completion: with `cache` those are the key and value columns it holds, with `off`
    the tokens it runs. With `packed` a prompt is counted once.
    """
    bundles: list[Bundle] = []
    for parts in _prompt_batches(rows, families(rows, units(rows, groups, scope)), budget):
        prompts = distinct_prompts(rows, _flat(parts))
        pieces = []
        for index in _pieces(rows, parts, form, budget):
            mine = prompts if form == "cache" else distinct_prompts(rows, index)
            at = {id(p): b for b, p in enumerate(mine)}
            prompt_n, group_n = [at[id(rows[i].prompt)] for i in index], [int(groups[i]) for i in index]
            chunk = Chunk([rows[i] for i in index], mine, prompt_n, group_n, width)
            pieces.append(Piece(torch.tensor(index, dtype=torch.long), None, chunk))
        bundles.append(Bundle(pieces, prompts))
    return bundles


def _prompt_batches(rows: Sequence[Row], found: list[list[list[int]]], budget: int) -> list[list[list[int]]]:
    """Families of similar prompt length together, as long as their padded prompts fit the budget."""
    sized = []
    for family in found:
        prompts = distinct_prompts(rows, _flat(family))
        sized.append((max(len(p) for p in prompts), len(prompts), family))
    sized.sort(key=lambda s: s[0])
    batches: list[list[list[int]]] = []
    count = 0
    for longest, number, family in sized:
        if not batches or (count + number) * longest > budget:
            batches.append([])
            count = 0
        batches[-1] += family
        count += number
    return batches


def _pieces(rows: Sequence[Row], parts: list[list[int]], form: str, budget: int) -> list[list[int]]:
    """Units sorted by length, put together while the padded block fits the budget."""
    if form == "packed":  # rows of one prompt side by side: they share its columns
        first: dict[int, int] = {}
        for unit in parts:
            first.setdefault(id(rows[unit[0]].prompt), len(first))
        ordered = sorted(parts, key=lambda unit: (first[id(rows[unit[0]].prompt)], -max(len(rows[i]) for i in unit)))
    else:
        ordered = sorted(parts, key=lambda unit: max(len(rows[i]) for i in unit))
    pieces: list[list[int]] = []
    for unit in ordered:
        if pieces and _cost(rows, pieces[-1] + unit, form) <= budget:
            pieces[-1] += unit
        else:
            pieces.append(list(unit))
    return pieces


def _cost(rows: Sequence[Row], index: list[int], form: str) -> int:
    if form == "packed":
        widths: dict[int, int] = {}
        for i in index:
            key = id(rows[i].prompt)
            widths[key] = widths.get(key, len(rows[i].prompt)) + len(rows[i]) - 1
        return len(widths) * max(widths.values())
    prefix = max(len(rows[i].prompt) for i in index)
    return len(index) * (prefix + max(len(rows[i]) for i in index))
