"""Accuracy against tokens per forward: numbers, what leaves the tables, and how a canvas was unmasked."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from masked_runs import AFTER, BEFORE, EVIL, FRAMES, THRESHOLDS, pairs, write_masked

from mmrl.report import charts, frontier, gallery, verdict_lines, write_report
from mmrl.report.frontier import Point
from mmrl.report.runs import Run


def page(*runs: Path) -> tuple[str, dict[str, Any]]:
    """The page without its scripts, and what they draw."""
    html = write_report(list(runs), runs[0] / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.S)
    assert found
    return re.sub(r"(?s)<(script|style).*?</\1>", "", html), json.loads(found.group(1))


def run_of(**summary: Any) -> Run:
    return Run(path=Path("run"), label="run", summary=summary, metrics=[], config="")


def rows_of(html: str, table: str) -> list[list[str]]:
    """The cells of the body of the first table after `table`."""
    body = html[html.index(table) :].split("<tbody>")[1].split("</tbody>")[0]
    rows = re.findall(r"(?s)<tr>(.*?)</tr>", body)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"(?s)<td.*?>(.*?)</td>", row)] for row in rows]


def test_pairs_become_points_in_order_of_threshold() -> None:
    metrics = {"tpf@0.9": 2, "accuracy@0.95": 0.75, "accuracy@0.5": 0.25, "accuracy@0.9": 0.5, "tpf@0.95": 1.5}
    metrics |= {"tpf@0.5": 4.0, "accuracy@10": 1.0, "tpf@10": 1.0, "accuracy@1e-05": 0.0, "tpf@1e-05": 8.123456789}
    assert frontier.curve(metrics) == [
        Point("1e-05", 8.1235, 0.0),
        Point("0.5", 4.0, 0.25),
        Point("0.9", 2.0, 0.5),
        Point("0.95", 1.5, 0.75),
        Point("10", 1.0, 1.0),  # a number, not a word: after 0.95
    ]


@pytest.mark.parametrize("bad", [None, "0.5", True, float("nan"), float("inf"), 10**400, [1], {}])
def test_a_half_that_is_no_number_makes_no_point(bad: Any) -> None:
    whole = {"accuracy@0.9": 0.5, "tpf@0.9": 2.0}
    for name in whole:
        assert frontier.curve({**whole, name: bad}) == []
    own = frontier.frontiers([run_of(before={**whole, "aup": bad}, after={**whole, "aup": 3.0})])[0]
    assert own.aup == (None, 3.0) and own.aup_text == "– → 3.0" and own.aup_change is None


@pytest.mark.parametrize(
    "name", ["accuracy", "accuracy@", "accuracy@x", "accuracy@-1", "accuracy@0.9<b>", "acc@0.9", "eval/tpf@1", "tpf@٣"]
)
def test_other_names_are_no_thresholds(name: str) -> None:
    assert frontier.swept(name) is None and frontier.titled(name) is None


def test_area_before_and_after() -> None:
    def own(before: float | None, after: float | None) -> frontier.Frontier:
        return frontier.Frontier(0, [], [], (before, after))

    assert own(252.5, 492.375).aup_text == "252.5 → 492.4" and own(252.5, 492.375).aup_change == pytest.approx(95)
    assert own(200.0, 150.0).aup_change == -25
    assert own(None, None).aup_text == "" and own(0.0, 5.0).aup_change is None and own(4.0, None).aup_text == "4.0 → –"


def test_missing_halves_stay_in_the_table() -> None:
    whole = {"accuracy@0.9": 0.5, "tpf@0.9": 2.0}
    alone = run_of(before=whole | {"accuracy@0.5": 0.25}, after=whole | {"accuracy@0.5": 0.375, "aup": 7.0})
    assert frontier.folded([alone]) == {"accuracy@0.9", "tpf@0.9"}
    (own,) = frontier.frontiers([alone])
    assert own.before == own.after == [Point("0.9", 2.0, 0.5)] and own.aup == (None, 7.0)
    full = run_of(after={"accuracy@0.5": 0.5, "tpf@0.5": 3.0})
    assert frontier.folded([alone, full]) == {"accuracy@0.9", "tpf@0.9", "tpf@0.5"}  # one run cannot show its half
    found = frontier.frontiers([run_of(), alone, run_of(before=None, after={"accuracy": 0.5, "aup": 3.0}), full])
    assert [(f.run, len(f.before), len(f.after)) for f in found] == [(1, 1, 1), (3, 0, 1)]
    assert frontier.thresholds(found) == ["0.5", "0.9"]
    assert [found[1].cell(x) for x in ("0.5", "0.9")] == ["– → 0.500 at 3.00", "–"]


def test_one_run_on_the_page(tmp_path: Path) -> None:
    html, data = page(write_masked(tmp_path / "run"))
    (own,) = data["frontier"]
    for side, curve in (("before", BEFORE), ("after", AFTER)):
        assert [(p["threshold"], (p["tpf"], p["accuracy"])) for p in own[side]] == list(zip(THRESHOLDS, curve))
    assert re.search(r'AUP</span> <b>252\.5 → 492\.4</b> <span class="delta up">\+95 %</span>', html)
    assert rows_of(html, 'id="thresholds"')[3] == ["0.9", "0.750 at 2.00 → 0.844 at 3.50"]
    assert "true box" not in html and "IoU" not in html  # words for models that find boxes


def test_tiles_and_table_hold_the_plain_metrics_only(tmp_path: Path) -> None:
    run = write_masked(tmp_path / "run")
    html, _ = page(run)
    titles = [row[0] for row in rows_of(html, 'id="all-metrics"')]
    assert titles == [
        "Held-out accuracy", "Tokens per forward", "AUP (accuracy under parallelism)", "Reward", "Finished answers"
    ]  # fmt: skip
    assert re.findall(r'tile">\s*<h3>(.*?)<', html) == ["Held-out accuracy ", *titles[1:3]]
    said = "Held-out accuracy rose from 0.750 to 0.844; the best constant answer reaches 0.062."
    assert verdict_lines([run]) == [("+0.094", said)]


def test_the_metric_that_decides_stays_though_it_is_one_threshold(tmp_path: Path) -> None:
    run = write_masked(tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("metric: accuracy", "metric: accuracy@0.9"))
    assert verdict_lines([run])[0][1].startswith("Held-out accuracy at threshold 0.9 rose from 0.750 to 0.844")


def test_curves_over_training_are_folded(tmp_path: Path) -> None:
    _, data = page(write_masked(tmp_path / "run"))
    main, rest = data["charts"][: data["main"]], data["charts"][data["main"] :]
    assert {"eval/accuracy", "eval/tpf", "eval/aup", "eval/finished"} <= {chart["name"] for chart in main}
    assert {chart["name"] for chart in rest} == {f"eval/{name}" for name in pairs(BEFORE)}
    told = {chart["name"]: (chart["title"], chart["note"]) for chart in data["charts"]}
    assert told["eval/accuracy"] == ("Held-out accuracy", "share of greedy answers that are right")
    assert told["eval/accuracy@0.95"] == ("Held-out accuracy at threshold 0.95", charts.SWEPT_NOTE)
    assert told["eval/tpf@0.5"][0] == "Tokens per forward at threshold 0.5"
    many = [{"step": s, **{f"m{i}": s for i in range(20)}, "eval/tpf@0.9": s, "tpf@0.9": s} for s in (0, 1)]
    found = charts.curves([many])
    assert found.main == charts.MAIN == 12 and found.charts[-1].name == "eval/tpf@0.9"


def test_several_runs(tmp_path: Path) -> None:
    a, b = write_masked(tmp_path / "a"), write_masked(tmp_path / "b", seed=1, gain=0.5)
    bare = write_masked(tmp_path / "bare", seed=2, before={"accuracy": 0.5}, after={"accuracy": 0.75})
    html, data = page(bare, a, b)
    assert [own["run"] for own in data["frontier"]] == [1, 2]
    first, second = data["frontier"]
    assert first["before"] == second["before"]
    assert [q["tpf"] - p["tpf"] for p, q in zip(first["after"], second["after"])] == [0.5] * 5
    assert rows_of(html, 'id="thresholds"')[0] == [
        "0.5", "0.375 at 4.00 → 0.625 at 7.50", "0.375 at 4.00 → 0.625 at 8.00"
    ]  # fmt: skip
    assert html.count("252.5 → 492.4") == 2


def test_runs_without_pairs_have_no_such_part(tmp_path: Path) -> None:
    run = write_masked(tmp_path / "run", before={"accuracy": 0.5, "aup": 2.0}, after={"accuracy": 0.75, "aup": 3.0})
    html, data = page(run)
    assert data["frontier"] == [] and "tokens per forward before" not in html and 'id="parallel"' not in html
    (run / "summary.json").unlink()
    assert page(run)[1]["frontier"] == []


def test_names_and_labels_of_a_run_stay_text(tmp_path: Path) -> None:
    after = pairs(AFTER) | {f"accuracy@0.9{EVIL}": 0.5, f"tpf@0.9{EVIL}": 2.0}
    run = write_masked(tmp_path / "<b>run", after=after)
    html, data = page(run, write_masked(tmp_path / "plain"))
    assert EVIL not in html and "<b>run" not in html and "&lt;b&gt;run" in html
    assert [p["threshold"] for p in data["frontier"][0]["after"]] == list(THRESHOLDS)


def test_how_the_canvas_was_unmasked(tmp_path: Path) -> None:
    html, data = page(write_masked(tmp_path / "run"))
    first, _, now = data["samples"][0]["answers"]["0"]
    assert first["trajectory"] == FRAMES[:2] and now["trajectory"] == FRAMES
    assert data["samples"][1]["answers"]["0"][2]["trajectory"] == [EVIL, "1/1  " + EVIL] and EVIL not in html


@pytest.mark.parametrize("bad", ["text", 3, True, {"a": 1}, ["a", 1], [None], [["a"]]])
def test_a_trajectory_of_another_kind_is_named_not_shown(tmp_path: Path, bad: Any) -> None:
    run = write_masked(tmp_path / "run")
    file = run / "samples" / "step-000040.jsonl"
    rows = [json.loads(line) | {"trajectory": bad} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html, data = page(run)
    assert html.count("step-000040.jsonl: a trajectory is no list of lines of text; shown without it") == 1
    for sample in data["samples"]:
        assert ["trajectory" in answer for answer in sample["answers"]["0"]] == [True, True, False]


@pytest.mark.parametrize("empty", [None, []])
def test_no_trajectory_is_no_problem(tmp_path: Path, empty: Any) -> None:
    run = write_masked(tmp_path / "run")
    for file in (run / "samples").glob("step-*.jsonl"):
        rows = [json.loads(line) | {"trajectory": empty} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html, data = page(run)
    assert "None seen" in html
    assert not any("trajectory" in a for sample in data["samples"] for a in sample["answers"]["0"])


def test_long_trajectories_leave_fewer_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "TRAJECTORY_BYTES", 400)
    html, data = page(write_masked(tmp_path / "run"))
    assert [answer["step"] for answer in data["samples"][0]["answers"]["0"]] == [0, 40]
    assert "Of the steps with samples 2 a run are kept" in html


def test_right_by_the_reward_that_has_a_success_value(tmp_path: Path) -> None:
    _, data = page(write_masked(tmp_path / "run"))
    assert [a["right"] for a in data["samples"][0]["answers"]["0"]] == [False, True, True]
    reward = [("cells", 0.25), ("exact", 0.5), ("tpf", 0.1)]
    assert gallery.is_right([], [], reward, {"exact": 0.5}) is True
    assert gallery.is_right([], [], reward, {"exact": 0.75}) is False
    assert gallery.is_right([], [], [("a/x", 1.0), ("a/y", 0.0)], {"a": 1.0}) is False
    assert gallery.is_right([], [], [("exact", 1.0), ("tpf", 0.1)], {"other": 1.0}) is True  # speed judges nothing


@pytest.mark.parametrize("listed", [None, "exact", [], ["exact"], [{"name": "a"}, {"name": "a", "success": "high"}]])
def test_settings_without_a_success_value(listed: Any) -> None:
    assert gallery.success({"rewards.components": listed}) == {}
