"""Soft length penalty of DAPO (arXiv 2503.14476) as a reward component. Loads no torch. Every task.

The tensor form is `mmrl.core.shaping.overlong_penalty`; a test holds the two together. Checked with: formula only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.registry import reward


def overlong_score(length: float, *, max_length: float, cache: float) -> float:
    """0 up to max_length - cache; ((max_length - cache) - length) / cache up to max_length; -1 above. In [-1, 0]."""
    free = max_length - cache
    if length <= free:
        return 0.0
    return -1.0 if length > max_length else (free - length) / cache


@reward("overlong", cacheable=False)
def overlong_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    max_length: Annotated[float, Field(gt=0)],
    cache: Annotated[float, Field(gt=0)],
) -> list[float]:
    """The penalty on `info["length"]` (decisions; tokens for text)."""
    if cache > max_length:
        raise UserError(f"rewards: 'overlong': cache ({cache:g}) is larger than max_length ({max_length:g})")
    return [overlong_score(row["length"], max_length=max_length, cache=cache) for row in info]
