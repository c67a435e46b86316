"""Rewards and judges of the embedded digits. Loads no torch: networks are loaded by the first call.

Judges are independent of the rewards: another architecture, trained on other pictures. A wrong size is a UserError.
Checked with: real weights (the shipped ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from image_gen.rewards.composition_rules import Found, Spec, read_spec, shaped_score, strict_score
from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError
from mmrl.rewards.registry import reward

Objects = dict[str, list[Found]]
Share = Annotated[float, Field(gt=0, le=1)]


@reward("digit", tasks=("digit",))
def digit(
    outputs: Sequence[Any],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    enough: Share = 1.0,
) -> list[float]:
    """The reward network's probability p of the digit that was asked for, as min(p, enough) / enough, in [0, 1].

    enough below 1 is satisfied by every readable digit and asks no further for the most typical one, which would take
    the differences between pictures away."""
    probability_nk = _read("reward", outputs, cells=1)[:, 0]
    found = [float(row[_digit(record)]) for row, record in zip(probability_nk, records, strict=True)]
    return [min(p, enough) / enough for p in found]


@reward("digit_judge")
def digit_judge(outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """1 where the judge's best class is the digit that was asked for, else 0 ("nothing readable" is a class)."""
    best_n = _read("judge", outputs, cells=1)[:, 0].argmax(-1)
    return [float(int(best) == _digit(record)) for best, record in zip(best_n, records, strict=True)]


@reward("digits_composition", tasks=("composition",))
def digits_composition(
    outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]]
) -> list[float]:
    """Graded parts, in [0, 1], by the reward network: count and position as `composition_rules.shaped_score` has them
    (after GenEval, arXiv 2310.11513, and Flow-GRPO, arXiv 2505.05470), and one part more, our own: 1 when nothing else
    stands on the canvas, 1/2 with one other digit, 1/3 with two."""
    return [_shaped(*pair) for pair in _detected("reward", outputs, records)]


@reward("composition_judge")
def composition_judge(outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """1 where the judge sees exactly what was asked for, in number and place, and nothing else; else 0."""
    return [strict_score(objects, spec, _no_colours) for objects, spec in _detected("judge", outputs, records)]


def _read(name: str, outputs: Sequence[Any], *, cells: int) -> Any:
    from image_gen.embedded.classifiers import probabilities

    try:
        return probabilities(name, outputs, cells=cells)
    except ValueError as error:
        raise UserError(f"rewards of the embedded digits: {error}; set inputs.height and inputs.width") from None


def _digit(record: Record) -> int:
    if not isinstance(record.answer, int) or isinstance(record.answer, bool) or not 0 <= record.answer <= 9:
        raise RecordError(record.id, f"the answer must be a digit from 0 to 9, got {record.answer!r}")
    return record.answer


def _detected(name: str, outputs: Sequence[Any], records: Sequence[Record]) -> list[tuple[Objects, Spec]]:
    """For every picture: the digits by name and falling probability, a cell's best class each; and what was asked."""
    from image_gen.embedded.canvas import CELLS, EMPTY, SIDE
    from image_gen.embedded.words import DIGITS

    found = []
    for probability_ck, record in zip(_read(name, outputs, cells=CELLS), records, strict=True):
        spec = read_spec(record.meta, f"record {record.id!r}")
        if spec is None:
            raise RecordError(record.id, "no `include` in its meta: it asks for no composition")
        objects: Objects = {}
        for at, (value, label) in enumerate(zip(*(t.tolist() for t in probability_ck.max(-1)), strict=True)):
            if label != EMPTY:
                box = (float(at * SIDE), 0.0, float((at + 1) * SIDE), float(SIDE))
                objects.setdefault(DIGITS[label], []).append(Found(box, value))
        for mine in objects.values():
            mine.sort(key=lambda one: -one.score)
        found.append((objects, spec))
    return found


def _shaped(objects: Objects, spec: Spec) -> float:
    asked = {clause.name for clause in spec.include}
    foreign = sum(len(mine) for name, mine in objects.items() if name not in asked)
    parts = sum(2 if clause.relation else 1 for clause in spec.include)
    return (parts * shaped_score(objects, spec, _no_colours) + 1 / (1 + foreign)) / (parts + 1)


def _no_colours(name: str, objects: Sequence[Found]) -> Sequence[str]:
    raise RecordError("?", "the embedded digits have no colours")  # no prompt of theirs asks for one
