"""Options of an estimator that cannot be meant: one line with the estimator, the option and what is valid."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl.errors import UserError, nearest


def whole(name: str, option: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"likelihood {name}: {option} must be a whole number from {low} to {high}, got {value!r}")
    return value


def number(name: str, option: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UserError(f"likelihood {name}: {option} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def one_of(name: str, option: str, value: object, valid: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in valid:
        raise UserError(f"likelihood {name}: {option} {value!r} is not one of its values{nearest(str(value), valid)}")
    return value


def switch(name: str, option: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"likelihood {name}: {option} must be true or false, got {value!r}")
    return value
