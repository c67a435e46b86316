"""The two models of the quickstart in one summary: GDPO's under plain names, LightningRL's told apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlm.metrics import aup

#: The confidence threshold whose accuracy and tokens per forward stand in the summary.
THRESHOLD = 0.9


def joined(parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """accuracy of the first part; lightning_accuracy, tpf (both at threshold 0.9) and aup of the second, whose y_max is
    the best accuracy of the curves before and after."""
    gdpo, lightning = (parts[name] for name in ("gdpo", "lightningrl"))
    curves = {when: curve(lightning[when]) for when in ("before", "after")}
    best = max((y for points in curves.values() for _, y in points), default=None)
    found: dict[str, Any] = {}
    for when, points in curves.items():
        found[when] = {
            "accuracy": gdpo[when]["accuracy"],
            "lightning_accuracy": lightning[when][f"accuracy@{THRESHOLD:g}"],
            "tpf": lightning[when][f"tpf@{THRESHOLD:g}"],
            "aup": aup(points, y_max=best),
        }
    chance = {
        "accuracy": gdpo["chance"].get("accuracy"),
        "lightning_accuracy": lightning["chance"].get("accuracy"),
    }
    return {"chance": {name: value for name, value in chance.items() if value is not None}, **found}


def curve(metrics: Mapping[str, float]) -> list[tuple[float, float]]:
    """(tokens per forward, accuracy in %) at every threshold that was evaluated."""
    names = [name.partition("@")[2] for name in metrics if name.startswith("tpf@")]
    return [(metrics[f"tpf@{x}"], 100 * metrics[f"accuracy@{x}"]) for x in names]
