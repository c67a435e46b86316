"""examples/train_dlm.py as it is, on a tiny model: trained, told, answered; then taken out."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from mmrl.cli.main import run

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "train_dlm.py"
SMALL = [
    *("sampling.max_new_tokens=8", "sampling.block=4", "sampling.steps=4", "device=cpu", "data.eval_records=2"),
    *("data.train=arithmetic:train?n=8", "data.eval=arithmetic:eval?n=4", "rewards.components.0.name=exact"),
    *("train.steps=1", "train.prompts=2", "train.group=2", "train.epochs=1", "model.adapter.rank=2"),
    *("log.tensorboard=false", "eval.every=0"),
]


def test_the_example_trains_tells_and_answers(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["dlm/llada_8b_countdown_gdpo", f"model.path={tiny['llada']}", *SMALL, "out=mine"]
    monkeypatch.setattr("sys.argv", ["train_dlm.py", *given])
    runpy.run_path(str(EXAMPLE))
    shown = capsys.readouterr().out
    assert "accuracy" in shown and "->" in shown and "tokens a forward" in shown
    folder = tmp_path / "mine"
    assert (folder / "report.html").is_file() and (folder / "answers" / "samples.jsonl").is_file()
    assert run(["export", str(folder), "--out", str(tmp_path / "merged")]) == 0
    said = capsys.readouterr().out
    assert "the base model with its adapter merged" in said and "loaded again by mmrl in a fresh process" in said
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "from dlm.generate import generate" in card and "plain mmrl" not in card
    arguments = ["generate", str(tmp_path / "merged"), "sampling.max_new_tokens=8", "--prompt", "1+1="]
    assert run([*arguments, "--out", str(tmp_path / "said")]) == 0
    assert json.loads((tmp_path / "said" / "samples.jsonl").read_text())["prompt"] == "1+1="
