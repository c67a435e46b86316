"""`report.html`: one self-contained page about one run, or about several beside one another. Loads no torch.

Model output is untrusted text. Tables are written through jinja's autoescape; curves and samples travel as JSON with
`<`, `>` and `&` escaped, and the page's script puts them in place as text. The page forbids itself to load anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmrl.errors import UserError
from mmrl.report import charts, compare, decoding, frontier, profiles, verdict
from mmrl.report import gallery as galleries
from mmrl.report.runs import Run, read_runs

HEADLINES = 3
STYLES = "page.css"
SCRIPTS = ("charts.js", "plots.js", "frontier.js", "drawn.js", "tokens.js", "gallery.js", "page.js")


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page of one or several run folders to `out` and return its path. Raises UserError."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not runs:
        raise UserError("report: name at least one run folder")
    read = read_runs(runs)
    success = [galleries.success(run.settings) for run in read]
    gallery = galleries.collect([run.path for run in read], [run.problems for run in read], success)
    groups = compare.groups(read)
    metrics = compare.metrics(read, groups)
    parallel = frontier.frontiers(read)
    decoded = decoding.decodings(read)
    columns, decoded_rows = decoding.table(decoded)
    drawn_by_steps = profiles.panels(read)
    draws = all(run.draws for run in read)
    drawn = charts.curves([run.metrics for run in read], drawn=draws, filled=gallery.filled)
    environment = Environment(
        loader=PackageLoader("mmrl.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    own = {name: (Path(__file__).parent / name).read_text(encoding="utf-8") for name in (STYLES, *SCRIPTS)}
    page = environment.get_template("page.html.j2").render(
        runs=read,
        groups=groups,
        metrics=metrics,
        headlines=HEADLINES,
        verdicts=verdict.verdicts(read, groups, metrics[0].name) if metrics else [],
        draws=draws,
        missing=verdict.missing(read, groups),
        settings=compare.differing(read) if len(read) > 1 else [],
        troubles=sorted((t for run in read for t in run.troubles), key=lambda t: (t.step, t.run)),
        curves=drawn,
        points=charts.POINTS,
        parallel=parallel,
        thresholds=frontier.thresholds(parallel),
        decoded=decoded,
        decoded_columns=columns,
        decoded_rows=decoded_rows,
        profiles=drawn_by_steps,
        gallery=gallery,
        tasks=sorted({sample.task for sample in gallery.samples if sample.task}),
        rollouts=[galleries.rollouts(run.path) for run in read],
        describe=describe,
        data=page_data(read, groups, drawn, gallery)
        | {
            "frontier": [_plain(own) for own in parallel],
            "decoding": [asdict(own) for own in decoded],
            "profiles": [asdict(panel) for panel in drawn_by_steps],
        },
        style=own[STYLES],
        scripts=[own[name] for name in SCRIPTS],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8", errors="replace")  # a lone surrogate in model text is no UTF-8
    return out


def verdict_lines(runs: Sequence[Path]) -> list[tuple[str, str]]:
    """What the page says first, for the terminal: (change, sentence) for each group of runs. Raises UserError."""
    read = read_runs(runs)
    groups = compare.groups(read)
    metrics = compare.metrics(read, groups)
    found = verdict.verdicts(read, groups, metrics[0].name) if metrics else []
    return [(v.change, f"{v.name}. {v.text}" if v.name else v.text) for v in found]


def page_data(
    runs: Sequence[Run],
    groups: Sequence[compare.Group],
    curves: charts.Curves,
    gallery: galleries.Gallery,
) -> dict[str, Any]:
    """Curves and samples that the page's script draws, JSON-ready: no number in it is infinite or NaN."""
    return {
        "runs": [{"label": run.label} for run in runs],
        "groups": [asdict(group) for group in groups],
        "main": curves.main,
        "charts": [asdict(chart) for chart in curves.charts],
        "steps": curves.steps,
        "phases": curves.phases,
        "signs": [asdict(trouble) for run in runs for trouble in run.troubles],
        "pictures": [
            {"uri": uri, "size": size} for uri, size in zip(gallery.pictures.uris, gallery.pictures.sizes, strict=True)
        ],
        "weights": list(gallery.weights or ()),
        "samples": [_lean(_finite(asdict(sample))) for sample in gallery.samples],
    }


def _plain(own: frontier.Frontier) -> dict[str, Any]:
    return {"run": own.run, "before": [asdict(p) for p in own.before], "after": [asdict(p) for p in own.after]}


def _lean(sample: dict[str, Any]) -> dict[str, Any]:
    """Without what only pictures have, for the thousands of answers that are texts, and without empty lists."""
    if not sample["truth"]:
        del sample["truth"]
    for answer in (answer for answers in sample["answers"].values() for answer in answers):
        if not sample["drawn"]:
            del answer["pictures"], answer["totals"]
        for key in ("trajectory", "filling", "tokens"):
            if not answer[key]:
                del answer[key]
    return sample


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def describe(summary: Mapping[str, Any]) -> str:
    """`vlm, visual-rft, seed 0, 300 steps, 212 s`, as far as it is known."""
    parts = [str(summary[key]) for key in ("family", "recipe") if summary.get(key)]
    if summary.get("control") not in (None, "none"):
        parts.append(f"control: {summary['control']} rewards")
    if summary.get("seed") is not None:
        parts.append(f"seed {summary['seed']}")
    if summary.get("steps") is not None:
        parts.append(f"{summary['steps']} steps")
    if isinstance(summary.get("seconds"), int | float):
        parts.append(f"{summary['seconds']:.0f} s")
    return ", ".join(parts)
