"""What is done with a run later: its training file may be gone, its pictures several, its evaluation missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrl.cli.main import run
from mmrl.config import Config
from mmrl.config_io import build
from mmrl.training.stored import run_config
from mmrl.vlm import tiny
from mmrl.vlm.generate import frame_of, settings, write_answers

torch.set_num_threads(1)

GOOD = {"task": "detection", "prompt": "Where is 7?", "images": ["a.png"], "answer": [[1, 2, 30, 31]]}


def write(path: Path, *frames: str) -> None:
    rows = [{**GOOD, "id": f"{path.stem}{i}", "frame": frame} for i, frame in enumerate(frames)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without training steps, and what it read."""
    root = tmp_path_factory.mktemp("stored")
    tiny.build("qwen3_vl", root / "model")
    Image.new("RGB", (32, 32), "white").save(root / "a.png")
    write(root / "train.jsonl", "pixel_original", "pixel_original")
    write(root / "eval.jsonl", "pixel_original")
    (root / "run.yaml").write_text(
        "family: vlm\nrecipe: grpo\ndevice: cpu\nmodel: {path: model}\ndata: {train: train.jsonl, eval: eval.jsonl}\n"
        "sampling: {max_new_tokens: 2}\ntrain: {steps: 0, prompts: 2, group: 2}\neval: {samples: 1}\n"
        "log: {tensorboard: false}\n"
    )
    assert run(["train", str(root / "run.yaml"), f"out={root / 'finished'}"]) == 0
    return root


@pytest.fixture
def copied(world: Path, tmp_path: Path) -> Path:
    """All of it at another place that a test may change; the run's own configuration names files there."""
    root = Path(shutil.copytree(world, tmp_path / "copy"))
    config = root / "finished" / "config.yaml"
    config.write_text(config.read_text().replace(str(world), str(root)))
    return root


@pytest.mark.parametrize("given", [[], ["--config", "run.yaml"]])
def test_evaluation_reads_only_its_own_records(
    given: list[str], copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copied)
    assert run(["eval", "finished", "--json", *given]) == 0
    before = json.loads(capsys.readouterr().out)
    (copied / "train.jsonl").unlink()
    assert run(["eval", "finished", "--json", *given]) == 0
    assert json.loads(capsys.readouterr().out) == before
    (copied / "eval.jsonl").unlink()
    assert run(["eval", "finished", *given]) == 2
    assert "data.eval: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["--config", "run.yaml"]])
def test_answers_need_no_records(given: list[str], copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied)
    command = ["generate", "finished", "--prompt", "Where is 7?", "--image", "a.png", *given]

    def frame(*more: str) -> str:
        assert run([*command, "--out", "answers", *more]) == 0
        return str(json.loads((copied / "answers" / "answers.json").read_text())["frame"])

    assert frame() == "pixel_original"
    assert frame("--frame", "norm1") == "norm1"
    for name in ("train.jsonl", "eval.jsonl"):
        (copied / name).unlink()
    assert frame() == "norm1000"


def test_an_unknown_frame(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(world / "finished"), "--prompt", "x", "--frame", "norm100"]) == 2
    assert "norm1000" in capsys.readouterr().err


def test_the_frame_of_the_training_records(copied: Path) -> None:
    config = settings(copied / "finished", None)
    assert frame_of(config) == "pixel_original"
    write(copied / "train.jsonl", "pixel_original", "norm1000", "pixel_original")
    assert frame_of(config) == "norm1000"
    config.data.train = "digits:train?n=3"
    assert frame_of(config) == "norm1000"


def test_the_configuration_keeps_the_names_of_what_is_gone(copied: Path) -> None:
    (copied / "train.jsonl").unlink()
    config = run_config(copied / "finished", None, data="eval")
    assert config.data.train == str(copied / "train.jsonl")
    assert config.data.eval == str(copied / "eval.jsonl")


def test_boxes_are_drawn_on_the_picture_they_are_counted_in(tmp_path: Path) -> None:
    """Sizes 64 x 64 and 64 x 32: `describe` gives pixels of the first."""
    pictures = [Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 32), "black")]
    answers = [{"output": "x", "images": pictures, "boxes": [[8, 16, 24, 40]]}]
    file = write_answers(answers, tmp_path, prompt="p", checkpoint="c", seed=0, frame="norm1000")[0]
    with Image.open(file) as drawn:
        assert drawn.size == (512, 512)
        assert drawn.getpixel((8 * 8, 30 * 8)) == (0xE4, 0x57, 0x2E)


def test_a_run_without_evaluation(copied: Path) -> None:
    out = copied / "blind"
    assert run(["train", str(copied / "run.yaml"), "data.eval=null", "train.steps=1", f"out={out}"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["before"] == summary["after"] == {} and summary["steps"] == 1
    assert run(["report", str(out)]) == 0


EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "finetune_vlm.py"


@pytest.mark.parametrize(
    ("arguments", "held_out"),
    [([], "digits:eval"), (["model", "train.jsonl"], None), (["model", "train.jsonl", "eval.jsonl"], "eval.jsonl")],
)
def test_the_example_never_mixes_records_of_a_user_with_the_digits(
    arguments: list[str], held_out: str | None, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import runpy

    from mmrl import report
    from mmrl.rewards import registry
    from mmrl.training import run as training

    made: list[Config] = []

    def keep(config: Config) -> Path:
        made.append(config)
        return Path("nowhere")

    monkeypatch.chdir(world)
    monkeypatch.setattr(registry, "_REWARDS", dict(registry.registered()))
    monkeypatch.setattr(training, "train", keep)
    monkeypatch.setattr(report, "write_report", lambda runs, page: page)
    monkeypatch.setattr("sys.argv", ["finetune_vlm.py", *arguments])
    runpy.run_path(str(EXAMPLE))
    assert made[0].data.eval == (str(world / held_out) if held_out == "eval.jsonl" else held_out)
    assert made[0].data.train == (str(world / "train.jsonl") if arguments else "digits:train?task=detection")
    assert build(made[0].model_dump(), folder=world) == made[0]
