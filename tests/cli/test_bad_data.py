"""Bad records stop a run before weights load: one line with file and line number, exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmrl.cli.main import run

GOOD = {
    "id": "a",
    "task": "detection",
    "prompt": "Where is the 7?",
    "images": ["a.png"],
    "answer": [[100, 200, 300, 400]],
    "frame": "norm1000",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "run.yaml").write_text(
        "family: vlm\nrecipe: grpo\nmodel: {path: embedded:vlm}\ndata: {train: train.jsonl}\n"
        f"out: {tmp_path / 'out'}\n"
    )
    return tmp_path


def line(**changes: object) -> str:
    return json.dumps({**GOOD, **changes})


CASES = {
    "no answer": (line(answer=None), ["answer"]),
    "swapped corners": (line(answer=[[300, 200, 100, 400]]), ["x2"]),
    "outside the frame": (line(answer=[[100, 200, 300, 1400]]), ["1400"]),
    "NaN": (line(answer=[[100, 200, float("nan"), 400]]), ["NaN"]),
    "Infinity": (line(answer=[[100, 200, float("inf"), 400]]), ["Infinity"]),
    "broken JSON": ('{"id": "b", "task": ', ["broken JSON"]),
    "misspelt field": (line(promt="x"), ["promt", "prompt"]),
    "unknown frame": (line(frame="norm100"), ["norm100", "norm1000"]),
    "missing picture": (line(images=["none.png"]), ["none.png"]),
    "truncated picture": (line(images=["cut.png"]), ["cut.png"]),
    "no picture at all": (line(images=["text.png"]), ["text.png"]),
}


@pytest.mark.parametrize("case", CASES)
def test_check_data_and_doctor_name_the_line(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, parts = CASES[case]
    (folder / "train.jsonl").write_text(line(id="good") + "\n" + text + "\n")
    assert run(["check-data", str(folder / "train.jsonl")]) == 2
    bad = [row for row in capsys.readouterr().out.splitlines() if "train.jsonl" in row and "good records" not in row]
    assert len(bad) == 1, bad
    for part in parts:
        assert part in bad[0], bad[0]
    assert run(["doctor", str(folder / "run.yaml")]) == 2
    assert parts[0] in capsys.readouterr().out


@pytest.mark.parametrize("case", ["no answer", "swapped corners", "outside the frame", "NaN", "broken JSON"])
def test_training_stops_at_the_record(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, parts = CASES[case]
    (folder / "train.jsonl").write_text(line(id="good") + "\n" + text + "\n")
    assert run(["train", str(folder / "run.yaml")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1
    assert "train.jsonl:2" in shown
    for part in parts:
        assert part in shown, shown


def test_an_empty_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.jsonl").write_text("\n")
    assert run(["train", str(folder / "run.yaml")]) == 2
    assert "empty" in capsys.readouterr().err


def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("1", (30_000, 10)).save(folder / "wide.png")  # small on disk, 30000 pixels wide
    (folder / "train.jsonl").write_text(line(images=["wide.png"]) + "\n")
    assert run(["check-data", str(folder / "train.jsonl")]) == 2
    assert "30000" in capsys.readouterr().out
