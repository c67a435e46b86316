"""One evaluation of a family, with what it has to say about the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from mmrl.config import Config
from mmrl.data.records import Record
from mmrl.training.policy import Policy


def measured(
    entry: ModuleType, policy: Policy, records: list[Record], config: Config, tell: Callable[[str], None] | None
) -> dict[str, float]:
    """The metrics. `tell`, when given, gets a line for each thing that looks wrong with the answers before any
    training, if the family looks (`first_look` of `mmrl.families`)."""
    if tell is None or not hasattr(entry, "first_look"):
        return dict(entry.evaluate(policy, records, config))
    metrics, advice = entry.first_look(policy, records, config)
    for line in advice:
        tell(line)
    return dict(metrics)


def compared(
    entry: ModuleType, before: Mapping[str, float], after: Mapping[str, float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both evaluations as the summary holds them, with what the family says of one against the other (`compared` of
    `mmrl.families`)."""
    if not before or not after or not hasattr(entry, "compared"):
        return dict(before), dict(after)
    first, last = entry.compared(before, after)
    return dict(first), dict(last)
