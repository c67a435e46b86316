"""From the run folders of a study to one table of numbers."""

from __future__ import annotations

import json
import os
import platform
import statistics
from importlib import metadata
from pathlib import Path
from typing import Any

from study_file import Study
from study_jobs import read_json
from study_stats import paired, spread

from mmrl import __version__
from mmrl.errors import UserError

PACKAGES = ("torch", "transformers", "numpy")


def collect(study: Study, folder: Path, seeds: list[int], *, command: str) -> dict[str, Any]:
    """Everything that the page and the figure show. Metrics are of the last step, not of the best checkpoint."""
    runs = {name: [_run(folder / f"seed-{s}" / name, s, study.metrics) for s in seeds] for name in study.arms}
    for name in study.metrics:
        missing = [f"{arm}, seed {r['seed']}" for arm, rows in runs.items() for r in rows if name not in r["after"]]
        if missing:
            raise UserError(f"metrics: no {name!r} in the evaluation of {missing[0]}")
    return {
        "title": study.title,
        "command": command,
        "config": study.config,
        "metrics": study.metrics,
        "seeds": seeds,
        "chance": runs[study.main][0]["chance"],
        "versions": versions(),
        "machine": {"cores": cores(), "system": f"{platform.system()} {platform.machine()}"},
        "jobs": sorted({r["jobs"] for rows in runs.values() for r in rows}),
        "arms": {name: _arm(study, name, runs) for name in study.arms},
        "bounds": _bounds(study, runs),
        "runs": runs,
    }


def versions() -> dict[str, str]:
    return {"mmrl": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in PACKAGES}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(run: Path, seed: int, metrics: list[str]) -> dict[str, Any]:
    summary, note = read_json(run / "summary.json"), read_json(run.with_name(f"{run.name}.json"))
    kept = ("before", "after", "chance", "steps", "seconds", "seconds_cpu")
    return {
        "seed": seed,
        **{key: summary[key] for key in kept},
        "jobs": note["jobs"],
        "load_at_start": round(note["load_at_start"], 2),
        "arguments": note["arguments"],
        "curve": curve(run, metrics),
    }


def curve(run: Path, metrics: list[str]) -> list[dict[str, float]]:
    """The evaluations of a run: step, seconds of training until then, and the metrics."""
    rows, spent = [], 0.0
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        spent += row.get("seconds/step", 0.0)
        found = {m: round(row[f"eval/{m}"], 6) for m in metrics if f"eval/{m}" in row}
        if found:
            rows.append({"step": row["step"], "seconds": round(spent, 3), **found})
    return rows


def _gains(rows: list[dict[str, Any]], metric: str) -> list[float]:
    return [r["after"][metric] - r["before"][metric] for r in rows]


def _arm(study: Study, name: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    rows, main = runs[name], runs[study.main]
    metrics = {}
    for metric in study.metrics:
        gains = _gains(rows, metric)
        metrics[metric] = {
            "before": spread([r["before"][metric] for r in rows]),
            "after": spread([r["after"][metric] for r in rows]),
            "gain": spread(gains),
        }
        if name != study.main:  # by seed: what the study is about minus this one
            metrics[metric]["behind_main"] = paired(_gains(main, metric), gains)
    return {
        "label": study.arms[name].label,
        "note": study.arms[name].note,
        "metrics": metrics,
        "load": statistics.fmean(_share(r) / _share(m) for r, m in zip(rows, main, strict=True)),
        **{key: spread([r[key] for r in rows]) for key in ("steps", "seconds", "seconds_cpu")},
    }


def _share(row: dict[str, Any]) -> float:
    """Processor seconds a second of training: what the run had of the machine."""
    return row["seconds_cpu"] / max(row["seconds"], 1e-9) or 1e-9


def _bounds(study: Study, runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Arms whose mean gain may not pass a bound, and whether it holds: the first metric upwards, any downwards."""
    out = []
    for name, arm in study.arms.items():
        if arm.most_gain is not None:
            mean = spread(_gains(runs[name], study.metrics[0]))["mean"]
            out.append({"arm": name, "most_gain": arm.most_gain, "mean_gain": mean, "holds": mean <= arm.most_gain})
        for metric, least in arm.least_gain.items():
            mean = spread(_gains(runs[name], metric))["mean"]
            told = {"arm": name, "metric": metric, "least_gain": least, "mean_gain": mean, "holds": mean >= least}
            out.append(told)
    return out
