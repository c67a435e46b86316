"""One summary.json over several runs that belong together: the quickstart of a family with several models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmrl import json_io
from mmrl.training.disk import replace
from mmrl.training.metrics import clean

Summary = dict[str, Any]
#: Summaries by part -> {"before": {...}, "after": {...}, "chance": {...}} in names that tell the parts apart.
Join = Callable[[Mapping[str, Summary]], Summary]


def write_joined(folder: Path, runs: Mapping[str, Path], join: Join) -> Summary:
    """Write `folder/summary.json`: lists where the runs differ (recipe, steps), sums of seconds, and what `join` makes
    of their metrics. Returns it."""
    parts = {name: json_io.read_object(run / "summary.json", remedy="run it again") for name, run in runs.items()}
    first = next(iter(parts.values()))
    summary = {
        "family": first["family"],
        "recipe": [part["recipe"] for part in parts.values()],
        "control": first["control"],
        "seed": first["seed"],
        **join(parts),
        "steps": [part["steps"] for part in parts.values()],
        "seconds": round(sum(part["seconds"] for part in parts.values()), 3),
        "seconds_cpu": round(sum(part["seconds_cpu"] for part in parts.values()), 3),
        "parts": list(parts),
    }
    replace(folder / "summary.json", json.dumps(clean(summary), indent=1, allow_nan=False))
    return summary
