"""Counting reward: is the number right? Our own rule, no paper. Loads no torch.

Tasks: counting. Checked with: formula only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmrl.data.answers import count_answer, parse_count
from mmrl.data.records import Record
from mmrl.rewards.parse import answer_text
from mmrl.rewards.registry import reward


@reward("count", tasks=("counting",))
def count_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    shape: Literal["exact", "linear"] = "exact",
) -> list[float]:
    """`exact`: 1 for the right number, else 0. `linear`: max(0, 1 - |said - right| / max(right, 1)), in [0, 1].

    The whole answer must be the number; prose around it scores 0.
    """
    values = []
    for output, record in zip(outputs, records, strict=True):
        right = count_answer(record.answer, f"record {record.id!r}")
        said = parse_count(answer_text(output))
        if said is None:
            values.append(0.0)
        elif shape == "exact":
            values.append(float(said == right))
        else:
            values.append(max(0.0, 1.0 - abs(said - right) / max(right, 1)))
    return values
