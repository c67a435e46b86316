"""docs/metrics.md names the constants and the metrics of the code."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from mmrl.config import Train
from mmrl.data.records import Record
from mmrl.rewards.watch import ConstantWatch
from mmrl.training import diagnostics
from mmrl.training.signs import RECENT
from mmrl.vlm.evaluate import task_metrics

LINES = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines()
PATIENCE = inspect.signature(ConstantWatch).parameters["patience"].default


@pytest.mark.parametrize(
    ("warning", "threshold"),
    [
        ("a reward component is constant", f"{PATIENCE} steps"),
        ("nearly all samples are equal", f"`distinct` below {diagnostics.DISTINCT_LOW:g}"),
        ("most samples are cut off", f"`truncated` above {diagnostics.TRUNCATED_HIGH:g}"),
        ("hardly any group differs in reward", f"`flat_groups` above {diagnostics.FLAT_HIGH:g}"),
        ("nearly deterministic", f"`entropy` below {diagnostics.ENTROPY_LOW:g}"),
        ("answers grow", f"{diagnostics.LENGTH_GROWTH:g} times the first length"),
        ("answers shrink", f"1/{diagnostics.LENGTH_FALL:g} of the first length"),
        ("pictures become alike", f"`spread` below 1/{diagnostics.SPREAD_FALL:g} of the start"),
        ("negative rewards, no guard", "`unguarded_rewards` above 0"),
        ("answers become alike", f"`distinct` below 1/{diagnostics.DISTINCT_FALL:g} of the start"),
        ("entropy falls", f"below 1/{diagnostics.ENTROPY_FALL:g} of the start"),
        ("entropy grows", f"{diagnostics.ENTROPY_GROWTH:g} times the start, taken as at least 0.1"),
        ("far from the start", f"`kl` above {diagnostics.KL_HIGH:g}"),
        (
            "KL jumps",
            f"above {diagnostics.KL_JUMP_LEAST:g} and {diagnostics.KL_JUMP:g} times the median of {RECENT - 1} steps",
        ),
        ("ratio far from 1", f"`ratio` above {diagnostics.RATIO_FAR:g} or below 1/{diagnostics.RATIO_FAR:g}"),
        ("many tokens clipped", f"`clip_low` + `clip_high` above {diagnostics.CLIPPED_HIGH:g}"),
        ("gradient jumps", f"`grad_norm` above {diagnostics.GRAD_JUMP:g} times the median of {RECENT - 1} steps"),
    ],
)
def test_thresholds_of_warnings(warning: str, threshold: str) -> None:
    (line,) = [line for line in LINES if line.startswith(f"| {warning} |")]
    assert line.split("|")[2].strip() == threshold


def test_every_kind_of_warning_has_a_row() -> None:
    start, end = LINES.index("## Warnings"), LINES.index("## Before believing a gain")
    rows = [line.split("|") for line in LINES[start:end] if line.startswith("| ")][1:]
    assert len(rows) == len(diagnostics.RULES) + 2  # the sampler gap, and constant rewards
    windows = sorted(rule.window for rule in diagnostics.RULES)
    assert sorted(int(row[3]) for row in rows if row[3].strip()) == sorted([*windows, 1])
    assert f"for {diagnostics.CLEAR_AFTER} steps in a" in " ".join(LINES[start:end])


def test_the_tolerance_of_the_sampler_gap() -> None:
    (line,) = [line for line in LINES if line.startswith("| `sampler_gap`")]
    assert f"below {Train.model_fields['ratio_tolerance'].default:g} " in line


def test_every_evaluation_metric_is_explained() -> None:
    box = [1, 2, 3, 4]
    records = [
        Record("a", "detection", "?", answer=[box]),
        Record("b", "detection", "?", answer=[]),
        Record("c", "classification", "?", answer="7"),
        Record("d", "counting", "?", answer="2"),
        Record("e", "grounding", "?", answer=box),
    ]
    names = {*task_metrics(["" for _ in records], records), "reward"}
    assert names >= {"mean_iou", "acc_50", "classification", "counting", "grounding", "no_objects"}
    start, end = LINES.index("## Evaluation"), LINES.index("## Warnings")
    first_cells = " ".join(line.split("|")[1] for line in LINES[start:end] if line.startswith("| `"))
    for name in names:
        assert f"`{name}`" in first_cells
