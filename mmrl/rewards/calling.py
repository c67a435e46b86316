"""Calling one reward and holding it to the contract. Loads no torch: workers run this too."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.registry import RewardDef


@dataclass(frozen=True)
class Fault:
    """Why a row has no score."""

    message: str


#: One row: a value per component (NaN = does not apply), or why there is none.
Row = list[float] | Fault


class ContractError(Exception):
    """The reward returned something that the contract does not allow."""


def score_rows(
    one: RewardDef,
    options: Mapping[str, Any],
    outputs: Sequence[Any],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
) -> list[Row]:
    """A `Row` per row. When a rowwise reward fails on many rows, they are tried one by one to find the bad ones."""
    try:
        result = one.function(list(outputs), list(records), list(info), **options)
        columns = _columns(one, result, len(outputs))
    except ContractError as error:  # of no single row: a list that is too short fits a batch of one by chance
        return [Fault(f"reward {one.name!r}: {error}")] * len(outputs)
    except (Exception, SystemExit) as error:  # whatever a user's function raises is reported by name
        if len(outputs) > 1 and one.rowwise:
            singles = zip(outputs, records, info, strict=True)
            return [score_rows(one, options, [o], [r], [i])[0] for o, r, i in singles]
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return [Fault(f"reward {one.name!r}: {text}")] * len(outputs)
    return [_row(one, [column[i] for column in columns]) for i in range(len(outputs))]


def _columns(one: RewardDef, result: Any, n: int) -> list[list[Any]]:
    """The components as lists of n values each; raises ContractError."""
    if not one.components:
        if isinstance(result, Mapping):
            keys = ", ".join(repr(str(k)) for k in result)
            raise ContractError(f"it returns a dict: declare its columns, @reward({one.name!r}, components=({keys},))")
        return [_values(result, n, "it")]
    if not isinstance(result, Mapping):
        raise ContractError(f"it must return a dict with {', '.join(one.components)}, got {type(result).__name__}")
    if set(result) != set(one.components):
        raise ContractError(f"it returns the components {sorted(map(str, result))}, declared {sorted(one.components)}")
    return [_values(result[key], n, f"its component {key!r}") for key in one.components]


def _values(values: Any, n: int, what: str) -> list[Any]:
    if hasattr(values, "tolist"):  # arrays and tensors
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise ContractError(f"{what} must return a list with one entry per row, got {type(values).__name__}")
    if len(values) != n:
        raise ContractError(f"{what} returned {len(values)} values for {n} rows")
    return list(values)


def _row(one: RewardDef, values: list[Any]) -> Row:
    row: list[float] = []
    for value in values:
        number = value.item() if hasattr(value, "item") else value
        if number is None:
            row.append(math.nan)
        elif not isinstance(number, numbers.Real):
            return Fault(f"reward {one.name!r}: returned {value!r}, which is no number (None = does not apply)")
        elif not math.isfinite(number):
            return Fault(f"reward {one.name!r}: returned {float(number)}; return a finite number, or None")
        else:
            row.append(float(number))
    return row
