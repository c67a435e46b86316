"""A quickstart of several runs: one summary above their folders, and what commands make of such a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmrl.cli.checkpoints import require_checkpoint
from mmrl.cli.main import run
from mmrl.errors import UserError
from mmrl.report.runs import read_runs
from mmrl.training.summaries import write_joined


def summary(recipe: str, accuracy: float, **more: Any) -> dict[str, Any]:
    curve = {"accuracy@0.5": accuracy / 2, "tpf@0.5": 4.0, "accuracy@0.9": accuracy, "tpf@0.9": 2.0}
    metrics = {"accuracy": accuracy, **(curve if recipe == "lightningrl" else {})}
    after = {name: value * 1.5 for name, value in metrics.items()}
    head = {"family": "dlm", "recipe": recipe, "control": "none", "seed": 3, "chance": {"accuracy": 0.01}}
    return head | {"before": metrics, "after": after, "steps": 7, "seconds": 2.0, "seconds_cpu": 1.5} | more


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, recipe, accuracy in (("gdpo", "gdpo-diffusion", 0.5), ("lightningrl", "lightningrl", 0.6)):
        run = tmp_path / "run" / name
        run.mkdir(parents=True)
        (run / "summary.json").write_text(json.dumps(summary(recipe, accuracy)))
        (run / "metrics.jsonl").write_text("")
        (run / "config.yaml").write_text("family: dlm\n")
    from dlm.joined import joined

    runs = {name: tmp_path / "run" / name for name in ("gdpo", "lightningrl")}
    write_joined(tmp_path / "run", runs, joined)
    return tmp_path / "run"


def test_the_summary_of_both(folder: Path) -> None:
    told = json.loads((folder / "summary.json").read_text())
    assert told["recipe"] == ["gdpo-diffusion", "lightningrl"] and told["steps"] == [7, 7] and told["seconds"] == 4.0
    assert told["chance"] == {"accuracy": 0.01, "lightning_accuracy": 0.01}
    before, after = told["before"], told["after"]
    assert (before["accuracy"], before["lightning_accuracy"], before["tpf"]) == (0.5, 0.6, 2.0)
    assert (after["accuracy"], after["lightning_accuracy"], after["tpf"]) == (0.75, pytest.approx(0.9), 3.0)
    # points (2, 60), (4, 30) and (3, 90), (6, 45), y_max 90: in each the second has lost more than 5 and is left out
    assert before["aup"] == pytest.approx(120.0) and after["aup"] == pytest.approx(270.0)


def test_the_report_shows_the_runs_inside(folder: Path) -> None:
    assert [run.path.name for run in read_runs([folder])] == ["gdpo", "lightningrl"]


def reparted(folder: Path, parts: object) -> Path:
    told = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(told | {"parts": parts}))
    return folder


def test_a_missing_part_is_named(folder: Path) -> None:
    (folder / "lightningrl").rename(folder / "elsewhere")
    with pytest.raises(UserError, match=r"run/summary.json: its part 'lightningrl' is missing; ") as caught:
        read_runs([folder])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../other", "..", ".", "", "gdpo/../gdpo", "gdpo/", "..\\other", 3, None])
def test_parts_are_plain_names(name: object, folder: Path) -> None:
    shutil.copytree(folder / "gdpo", folder.parent / "other")
    with pytest.raises(UserError, match="parts must be names of folders beside it, got "):
        read_runs([reparted(folder, ["gdpo", name])])
    absolute = str(folder.parent / "other")
    for parts in ([absolute], [], "gdpo", {"gdpo": 1}):
        with pytest.raises(UserError, match="parts must be names of folders"):
            read_runs([reparted(folder, parts)])


def test_a_quickstart_that_stopped_early_names_its_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "summary.json").unlink()
    assert run(["report", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no summary.json over the runs in it" in line and line.endswith(f"{folder}/gdpo {folder}/lightningrl")
    assert [one.path.name for one in read_runs([folder / "gdpo"])] == ["gdpo"]  # as the line says


def test_other_commands_name_the_runs_inside(folder: Path) -> None:
    with pytest.raises(UserError, match="holds several runs; name one of them: .*gdpo, .*lightningrl"):
        require_checkpoint(folder)


def test_thresholds_have_a_table_of_their_own(folder: Path) -> None:
    from mmrl.cli.tables import curve_rows, metric_rows

    told = json.loads((folder / "lightningrl" / "summary.json").read_text())
    assert [row[0] for row in metric_rows(told)] == ["accuracy"]
    assert curve_rows(told) == [
        ("0.5", "4.00", "6.00", "0.300", "0.450"),
        ("0.9", "2.00", "3.00", "0.600", "0.900"),
    ]


def test_the_quickstart_prints_how_an_answer_was_unmasked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmrl.cli.tables import show_trajectory

    show_trajectory(folder / "gdpo")
    assert capsys.readouterr().out == ""
    (folder / "gdpo" / "samples").mkdir()
    row = {"id": "a", "prompt": "sort 21>", "trajectory": ["0/2  ··", "2/2  12 [red]"]}
    (folder / "gdpo" / "samples" / "step-000007.jsonl").write_text(json.dumps(row) + "\n")
    show_trajectory(folder / "gdpo")
    assert capsys.readouterr().out.splitlines()[:3] == [
        "how an answer was unmasked: sort 21>",
        "0/2  ··",
        "2/2  12 [red]",
    ]
