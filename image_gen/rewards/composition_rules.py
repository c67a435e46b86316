"""GenEval's rules on detections: which objects, how many, of what colour, where. Pure; loads no torch.

Source: GenEval, arXiv 2310.11513 (its released evaluation) and the training score of Flow-GRPO, arXiv 2505.05470.
Boxes are (x1, y1, x2, y2) in pixels, y downwards; the objects of a class come by falling score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.errors import UserError, nearest

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
_SHORT = {"left": "left of", "right": "right of"}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Found:
    """One detected object."""

    box: Box
    score: float


@dataclass(frozen=True)
class Clause:
    """`count` objects of a class, all of one colour (if given), each in `relation` to all of clause `target`."""

    name: str
    count: int
    colour: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class Spec:
    """What a prompt asks for. exclude: a class must have fewer than `count` objects."""

    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()
    tag: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class to look for, in order of appearance."""
        return tuple(dict.fromkeys(c.name for c in (*self.include, *self.exclude)))


#: (class, its objects) -> a colour for each. Called only where a colour is asked for.
ColourOf = Callable[[str, Sequence[Found]], Sequence[str]]


def read_spec(meta: Mapping[str, Any], where: str) -> Spec | None:
    """GenEval's metadata {tag, include: [{class, count, color, position: [relation, clause]}], exclude: [...]}.

    None where there is no `include`: the reward does not apply. `count` is 1 if left out. where: for messages.
    """
    if not meta.get("include"):
        return None
    include = tuple(_clause(one, f"{where}: include[{i}]", i) for i, one in enumerate(_list(meta["include"], where)))
    banned = _list(meta.get("exclude"), where)
    exclude = tuple(_clause(one, f"{where}: exclude[{i}]", 0) for i, one in enumerate(banned))
    if any(c.colour or c.relation for c in exclude):
        raise UserError(f"{where}: exclude knows class and count only")
    return Spec(include, exclude, str(meta.get("tag", "")))


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where}: include and exclude must be lists of objects, got {value!r}")
    return list(value)


def _clause(one: Any, where: str, index: int) -> Clause:
    known = ("class", "count", "color", "position")
    if not isinstance(one, Mapping) or not isinstance(one.get("class"), str) or not one["class"].strip():
        raise UserError(f"{where} must name a class, {{class: dog, count: 1}}, got {one!r}")
    for key in one:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{nearest(str(key), known)}")
    count, colour = one.get("count", 1), one.get("color")
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise UserError(f"{where}: count must be a whole number of at least 0, got {count!r}")
    if colour is not None and colour not in COLOURS:
        raise UserError(f"{where}: unknown color {colour!r}{nearest(str(colour), COLOURS)}")
    relation, target = _position(one.get("position"), where, index)
    if count == 0 and (colour or relation):
        raise UserError(f"{where}: a count of 0 can have neither color nor position")
    return Clause(one["class"].strip(), count, colour, relation, target)


def _position(value: Any, where: str, index: int) -> tuple[str | None, int]:
    if value is None:
        return None, 0
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise UserError(f"{where}: position must be [relation, number of an earlier clause], got {value!r}")
    relation = _SHORT.get(value[0], value[0])
    if relation not in RELATIONS:
        raise UserError(f"{where}: unknown position {value[0]!r}{nearest(str(value[0]), RELATIONS)}")
    if not isinstance(value[1], int) or not 0 <= value[1] < index:
        raise UserError(f"{where}: position must point to an earlier clause (0 to {index - 1}), got {value[1]!r}")
    return relation, value[1]


def relations(a: Box, b: Box, *, margin: float = 0.1) -> set[str]:
    """Where a lies seen from b: on each axis the distance of the centres, less margin * (both widths, or both heights),
    over the length of the line between the centres; more than 0.5 counts. Diagonal neighbours have two relations,
    objects on top of each other none."""
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    wide = abs(a[2] - a[0]) + abs(b[2] - b[0])
    high = abs(a[3] - a[1]) + abs(b[3] - b[1])
    rest_x = math.copysign(max(abs(dx) - margin * wide, 0.0), dx)
    rest_y = math.copysign(max(abs(dy) - margin * high, 0.0), dy)
    if abs(rest_x) < 1e-3 and abs(rest_y) < 1e-3:
        return set()
    away = math.hypot(dx, dy)
    holds = (rest_x / away < -0.5, rest_x / away > 0.5, rest_y / away < -0.5, rest_y / away > 0.5)
    return {name for name, true in zip(RELATIONS, holds, strict=True) if true}


def _placed(clause: Clause, mine: Sequence[Found], groups: Sequence[Sequence[Found] | None], margin: float) -> bool:
    """Every object of the clause stands in its relation to every object of the target, which must be right itself."""
    others = groups[clause.target]
    if others is None:
        return False
    return all(clause.relation in relations(a.box, b.box, margin=margin) for a in mine for b in others)


def strict_score(
    objects: Mapping[str, Sequence[Found]], spec: Spec, colours: ColourOf, *, margin: float = 0.1
) -> float:
    """GenEval: 1 if every `include` has at least its count (the surest `count` objects are looked at) with colour and
    position, and no `exclude` reaches its count; else 0. An exact number is asked for by `exclude` with count n + 1."""
    groups: list[Sequence[Found] | None] = []
    for clause in spec.include:
        mine = objects.get(clause.name, ())[: clause.count]
        right = len(mine) == clause.count
        if right and clause.colour:
            right = list(colours(clause.name, mine)).count(clause.colour) == clause.count
        if right and clause.relation:
            right = _placed(clause, mine, groups, margin)
        groups.append(mine if right else None)
    kept_out = all(len(objects.get(c.name, ())) < c.count for c in spec.exclude)
    return float(kept_out and None not in groups)


def counted(n: int, wanted: int) -> float:
    """max(0, 1 - |n - wanted| / wanted); for wanted = 0: 1 if n = 0 else 0."""
    if wanted == 0:
        return float(n == 0)
    return max(0.0, 1.0 - abs(n - wanted) / wanted)


def shaped_score(
    objects: Mapping[str, Sequence[Found]], spec: Spec, colours: ColourOf, *, margin: float = 0.1
) -> float:
    """Mean of parts, in [0, 1]: for each `include` its count (`counted`), and for a clause with colour or position one
    part for each of them once the count is exact: colour = `counted` of the objects of that colour, position = 0 or 1.
    While the count is wrong they are one part of 0. `exclude` is not looked at.

    Two differences from Flow-GRPO's released code, both our choice: a count part is never negative, and a wrong
    position is one part of 0 (there a part of 1 is added beside it). A wrong colour leaves the position out, as there.
    """
    parts: list[float] = []
    groups: list[Sequence[Found] | None] = []
    for clause in spec.include:
        mine = objects.get(clause.name, ())
        parts.append(counted(len(mine), clause.count))
        right = len(mine) == clause.count
        if not right and (clause.colour or clause.relation):
            parts.append(0.0)
        if right and clause.colour:
            fitting = list(colours(clause.name, mine)).count(clause.colour)
            parts.append(counted(fitting, clause.count))
            right = fitting == clause.count
        if right and clause.relation:
            right = _placed(clause, mine, groups, margin)
            parts.append(float(right))
        groups.append(mine if right else None)
    return sum(parts) / len(parts)
