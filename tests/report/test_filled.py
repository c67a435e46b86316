"""Masked image models on the page: quality over decoding steps, the schedule, phases, how a canvas was filled."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from filled_runs import COUNTS, DIVERSITY, JUDGE, T, schedule, write_filled
from test_frontier import page, rows_of, run_of

from mmrl.report import charts, decoding, profiles
from mmrl.report.decoding import Point

EVIL = "</script><b>"


def test_points_are_in_order_of_steps() -> None:
    metrics = {"judge@16": 0.5, "judge@2": 1, "judge@4": 0.123456789, "base/judge@2": 0.25, "diversity@2": 0.125}
    assert decoding.curve(metrics, "judge") == [Point(2, 1.0), Point(4, 0.12346), Point(16, 0.5)]
    assert decoding.curve(metrics, "base/judge") == [Point(2, 0.25)]
    assert decoding.curve(metrics, "base/diversity") == []


@pytest.mark.parametrize("bad", [None, "0.5", True, float("nan"), float("inf"), 10**400, [1], {}])
def test_what_is_no_number_makes_no_point(bad: Any) -> None:
    assert decoding.curve({"judge@2": bad, "judge@4": 0.5}, "judge") == [Point(4, 0.5)]


@pytest.mark.parametrize(
    "name",
    ["judge", "judge@", "judge@0", "judge@-2", "judge@2.5", "judge/ink@2", "base/reward@2", "judge@٣", "judge@2<b>"],
)
def test_other_names_are_no_step_counts(name: str) -> None:
    assert decoding.titled(name) is None and not decoding.is_drawn(name)
    assert decoding.curve({name: 0.5}, "judge") == []


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"steps_to_base_quality": 8}, {"steps_to_base_quality": 4}, "8 → 4"),
        ({"steps_to_base_quality": 8}, {"steps_to_base_quality": None}, "8 → not reached"),
        ({}, {"steps_to_base_quality": 16}, "– → 16"),
        ({}, {}, ""),
    ],
)
def test_steps_to_the_quality_of_the_start(before: dict[str, Any], after: dict[str, Any], told: str) -> None:
    (own,) = decoding.decodings([run_of(before={"judge@2": 0.5} | before, after={"judge@2": 0.5} | after)])
    assert own.reached == told


def test_the_hand_made_schedule_of_the_start_is_drawn_where_it_is_another_one() -> None:
    start = {"judge@2": 0.5, "base/judge@2": 0.5}
    (own,) = decoding.decodings([run_of(before=start, after=start)])
    assert own.lines["judge"]["before-base"] == [] and own.lines["judge"]["after-base"] == [Point(2, 0.5)]
    (own,) = decoding.decodings([run_of(before=start | {"base/judge@2": 0.25}, after=start)])
    assert own.lines["judge"]["before-base"] == [Point(2, 0.25)]
    columns, rows = decoding.table([own])
    assert columns == [("judge", side) for side in ("before", "before-base", "after-base", "after")]
    assert rows == [(0, 2, ["0.500", "0.250", "0.500", "0.500"])]
    assert decoding.decodings([run_of(before={"judge": 0.5}, after=None)]) == []


def test_one_run_on_the_page(tmp_path: Path) -> None:
    html, data = page(write_filled(tmp_path / "run"))
    (own,) = data["decoding"]
    for what, curves in (("judge", JUDGE), ("diversity", DIVERSITY)):
        for side, name in (("before", "before"), ("after-base", "base"), ("after", "after")):
            assert [(p["steps"], p["value"]) for p in own["lines"][what][side]] == list(zip(COUNTS, curves[name]))
    assert "steps to the quality of the start</span> <b>8 → 4</b>" in html
    table = html.replace('<tr data-run="0">', "<tr>")
    assert rows_of(table, 'id="step-counts"')[1] == ["4", "0.375", "0.500", "0.625", "0.188", "0.188", "0.150"]
    assert [row[0] for row in rows_of(html, 'id="all-metrics"')] == ["Judge", "Reward", "Diversity"]
    assert "mean of the schedule" in html and "noiseless" not in html


def test_evaluations_at_step_counts_are_folded_curves(tmp_path: Path) -> None:
    _, data = page(write_filled(tmp_path / "run"))
    main, rest = data["charts"][: data["main"]], data["charts"][data["main"] :]
    assert {"eval/judge", "eval/diversity", "loss", "lr"} <= {chart["name"] for chart in main}
    assert len(rest) == 16 and all("@" in chart["name"] for chart in rest)
    told = {chart["name"]: (chart["title"], chart["note"]) for chart in rest}
    assert told["eval/judge@4"] == ("Held-out judge in 4 steps", "with the mean of the learned schedule")
    assert told["eval/base/judge@4"] == ("Held-out judge in 4 steps, hand-made", "with the hand-made schedule")


def test_a_curve_of_diversity_alone_and_the_metric_that_decides(tmp_path: Path) -> None:
    only = {"judge": 0.5, "diversity@2": 0.25}
    html, data = page(write_filled(tmp_path / "run", before=only, after=only))
    assert 'id="decoding-diversity"' in html and 'id="decoding-judge"' not in html
    config = (run := write_filled(tmp_path / "other")) / "config.yaml"
    config.write_text(config.read_text().replace("metric: judge", "metric: judge@4"))
    html, _ = page(run)
    assert rows_of(html, 'id="all-metrics"')[0][:3] == ["Held-out judge in 4 steps", "–", "0.375 → 0.625"]


# the schedule


def test_the_schedule_before_and_after(tmp_path: Path) -> None:
    html, data = page(write_filled(tmp_path / "run"))
    assert re.findall(r'id="profile-\d"><h3>(.*?)</h3>', html) == [
        "Mask ratio", "Re-mask temperature", "Sample temperature", "Guidance"
    ]  # fmt: skip
    ratio = data["profiles"][0]["lines"]
    assert [(line["side"], line["y"]) for line in ratio] == [  # the start is the hand-made one: drawn once
        ("base", schedule(moved=0)["ratio"]["mean"]),
        ("after", schedule(moved=1)["ratio"]["mean"]),
    ]
    assert ratio[1]["x"] == [(t + 1) / T for t in range(T)] and ratio[1]["spread"] == []


def test_a_start_of_its_own_and_a_spread(tmp_path: Path) -> None:
    run = write_filled(tmp_path / "run", spread=0.25)
    (run / "samples" / "profiles-step-000000.json").write_text(json.dumps(schedule(moved=0.5)))
    lines = page(run)[1]["profiles"][0]["lines"]
    assert [line["side"] for line in lines] == ["base", "before", "after"]
    assert lines[1]["y"] == schedule(moved=0.5)["ratio"]["mean"] and lines[2]["spread"] == [0.25] * (T - 1) + [0.0]


def test_a_run_that_stored_one_file_only(tmp_path: Path) -> None:
    run = write_filled(tmp_path / "run")
    for step in (0, 20):
        (run / "samples" / f"profiles-step-0000{step:02d}.json").unlink()
    (panel, *_) = profiles.panels([_read(run)])
    assert [line.side for line in panel.lines] == ["base", "before"]  # nothing is called after
    (run / "samples" / "profiles-step-000040.json").unlink()
    html, data = page(run)
    assert data["profiles"] == [] and 'id="schedule"' not in html


def _read(run: Path) -> Any:
    from mmrl.report.runs import read_run

    return read_run(run, 0)


GOOD = {"x": [0.5, 1.0], "mean": [1, 2]}


@pytest.mark.parametrize(
    "bad",
    [
        3,
        {"x": [1.0]},
        GOOD | {"mean": [1]},
        GOOD | {"base": [1, None]},
        GOOD | {"mean": [1, "2"]},
        {"x": [], "mean": []},
    ],
)
def test_what_is_no_profile_is_named_not_shown(tmp_path: Path, bad: Any) -> None:
    run = write_filled(tmp_path / "run")
    named = {"good": GOOD, EVIL: bad}
    (run / "samples" / "profiles-step-000040.json").write_text(json.dumps(named))
    html, data = page(run)
    assert "profiles-step-000040.json: &lt;/script&gt;&lt;b&gt;: x and mean must be lists" in html and EVIL not in html
    assert [panel["title"] for panel in data["profiles"]][-1] == "Good"


@pytest.mark.parametrize("text", ["{", "[1]", "NaN"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    run = write_filled(tmp_path / "run")
    (run / "samples" / "profiles-step-000040.json").write_text(text)
    html, data = page(run)
    assert "profiles-step-000040.json: " in html and "None seen" not in html
    assert [line["side"] for line in data["profiles"][0]["lines"]] == ["base"]


# phases


def test_phases_have_a_line_each(tmp_path: Path) -> None:
    _, data = page(write_filled(tmp_path / "run"))
    lines = {chart["name"]: chart["lines"]["0"] for chart in data["charts"]}
    assert data["phases"] == ["tokens", "schedule"]
    for name, values in (("lr", (1e-3, 0.01)), ("loss", (-0.125, 0.5))):
        assert [(phase, set(ys)) for phase, _, ys in lines[name]] == [
            ("tokens", {values[0]}), ("schedule", {values[1]})
        ]  # fmt: skip
    steps = [data["steps"]["0"][at] for _, at, _ in lines["grad_norm"]]
    assert steps == [list(range(1, 41, 2)), list(range(2, 41, 2))]
    for name in ("reward", "spread", "eval/judge"):
        assert [phase for phase, _, _ in lines[name]] == [""]
    assert len(lines["reward"][0][2]) == 40


def test_a_run_of_one_phase_beside_one_of_two() -> None:
    both = [{"step": s, "phase": ("tokens", "schedule")[s % 2], "lr": 1.0, "reward": s} for s in range(4)]
    one = [{"step": s, "phase": "schedule", "lr": 1.0, "loss/kl": 1.0, "reward/ink": s} for s in range(4)]
    other = [{"step": s, "lr": 1.0} for s in range(4)]
    found = charts.curves([both, one, other])
    lines = {chart.name: chart.lines for chart in found.charts}
    assert found.phases == ("tokens", "schedule")
    assert {run: [line[0] for line in own] for run, own in lines["lr"].items()} == {
        0: ["tokens", "schedule"], 1: ["schedule"], 2: [""]
    }  # fmt: skip
    assert lines["loss/kl"][1][0][0] == "schedule" and lines["reward/ink"][1][0][0] == ""


def test_runs_of_one_phase_each_are_not_told_apart_by_it() -> None:
    rows = [[{"step": s, "phase": name, "lr": 1.0} for s in range(4)] for name in ("tokens", "steps")]
    found = charts.curves(rows)
    assert found.phases == () and [line[0] for own in found.charts[0].lines.values() for line in own] == ["", ""]


# how a canvas was filled


def test_strips_belong_to_their_pictures(tmp_path: Path) -> None:
    html, data = page(run := write_filled(tmp_path / "run"))
    assert "How it was filled" in html
    answers = data["samples"][0]["answers"]["0"]
    for answer in answers:
        assert len(answer["filling"]) == len(answer["pictures"]) == 4
        assert not set(answer["filling"]) & set(answer["pictures"])
        assert data["pictures"][answer["filling"][0]]["size"] == [(T + 1) * 9 - 1, 8]
    (run / "samples" / "images" / "0-1-40-filling.png").unlink()
    html, data = page(run)
    answers = data["samples"][0]["answers"]["0"]
    assert ["filling" in answer for answer in answers] == [True, True, False]  # none under the wrong picture
    assert "picture images/0-1-40-filling.png is not in the run folder" in html


def test_pictures_without_strips(tmp_path: Path) -> None:
    run = write_filled(tmp_path / "run")
    for file in (run / "samples").glob("step-*.jsonl"):
        rows = [json.loads(line) | {"filling": None} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html, data = page(run)
    assert "How it was filled" not in html and not any("filling" in a for a in data["samples"][0]["answers"]["0"])
