"""Answers that no reward can compare with, and `mmrl check-data` by a run's own inputs: told before weights load."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from video_files import steady, write_video

from mmrl import config_io
from mmrl.cli.main import run
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.checker import check_reward
from mmrl.rewards.registry import registered
from mmrl.training.setup import load_extensions, load_records
from video import family, tiny
from video.rewards import catalogue

ROOT = Path(__file__).resolve().parent.parent.parent
GOOD = {"id": "good", "task": "choice", "prompt": "Which?\nA one\nB two", "answer": "A"}

#: name -> (task, answer, what is said of it)
BAD = {
    "no letter": ("choice", "the cup", "answer of a choice must be letters such as 'B' or 'B,C', got 'the cup'"),
    "small letter": ("choice", "a", "answer of a choice must be letters"),
    "a number for letters": ("choice", [1], "answer of a choice must be letters"),
    "falling segment": ("grounding-time", [[6.0, 2.0]], "a segment must have 0 <= start < end"),
    "segment as text": ("grounding-time", "2 to 6", "answer must be segments"),
    "three numbers": ("tracking", {"0": [1, 2, 3]}, "frame '0': no box"),
    "no frame": ("tracking", {"first": [0, 0, 1, 1]}, "frames must be different numbers"),
    "number as text to read": ("ocr", 7, "answer must be a text or a list of them"),
    "blank text": ("ocr", "<answer> </answer>", "answer must be a text or a list of them"),
    "signs alone": ("open-ended", "?!", "has no letter or digit to compare"),
    "unit": ("number", "3 m", "answer of task 'number' must be a number"),
    "no number": ("regression", "many", "answer of task 'regression' must be a number"),
    "half a thing": ("counting", 2.5, "answer of a counting must be a whole number"),
}


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def settings(folder: Path, **sections: Any) -> Path:
    body: dict[str, Any] = {
        "family": "video",
        "recipe": "tw-grpo",
        "out": str(folder / "run"),
        "threads": 1,
        "device": "cpu",
        "model": {"path": "embedded:video"},
        "inputs": tiny.INPUTS,
        "data": {"train": "train.jsonl"},
    }
    for key, value in sections.items():
        body[key] = {**body[key], **value} if isinstance(body.get(key), dict) else value
    (folder / "train.jsonl").touch()
    (folder / "run.yaml").write_text(yaml.safe_dump(body))
    return folder / "run.yaml"


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(config: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(family, "load_policy", load)


def clip_of(folder: Path) -> str:
    return write_video(folder / "a.mp4", steady(8), size=(32, 32)).name


@pytest.mark.parametrize("case", BAD)
def test_a_run_stops_before_weights_load(
    case: str, tmp_path: Path, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    task, answer, said = BAD[case]
    bad = {"id": "odd", "task": task, "prompt": "?", "answer": answer}
    write(tmp_path / "train.jsonl", GOOD, bad)
    assert run(["train", str(settings(tmp_path))]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(told) == 1 and re.match(rf"error: \S*train\.jsonl:2 \(record 'odd'\): .*{re.escape(said)}", told[0])
    assert told[0].count("'odd'") == 1 and not (tmp_path / "run").exists()
    assert run(["doctor", str(tmp_path / "run.yaml")]) == 2
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("case", BAD)
def test_check_data_names_the_record(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default what has a video is checked; with a configuration all records are, and only by its rewards."""
    task, answer, said = BAD[case]
    bad = {"id": "odd", "task": task, "prompt": "?", "answer": answer}
    file = write(tmp_path / "train.jsonl", {**GOOD, "video": clip_of(tmp_path)}, {**bad, "video": clip_of(tmp_path)})
    assert run(["check-data", str(file)]) == 2
    out = capsys.readouterr().out
    assert "1 good records, 1 bad" in out and "train.jsonl:2 (record 'odd'): " in out and said in out
    write(file, GOOD, bad)
    assert run(["check-data", str(file), "--config", str(settings(tmp_path))]) == 2
    assert said in capsys.readouterr().out


def test_held_out_answers_are_checked_too(tmp_path: Path, no_weights: None, capsys: pytest.CaptureFixture[str]) -> None:
    """For the rewards, and the letters of questions for the metrics whatever the rewards."""
    write(tmp_path / "train.jsonl", GOOD)
    write(tmp_path / "eval.jsonl", {**GOOD, "answer": "first"})
    rewards = {"components": [{"name": "overlong", "options": {"max_length": 8, "cache": 4}}]}
    for change in ({}, {"rewards": rewards}, {"recipe": "sft"}):
        write(tmp_path / "train.jsonl", {**GOOD, "response": "<answer>A</answer>"})
        assert run(["train", str(settings(tmp_path, data={"eval": "eval.jsonl"}, **change))]) == 2
        assert "eval.jsonl:1 (record 'good'): answer of a choice must be letters" in capsys.readouterr().err


def test_only_rewards_of_the_run_are_asked(tmp_path: Path) -> None:
    """Answers in a form of one's own pass where no reward of the run reads them, and where they are only imitated."""
    odd = {**GOOD, "answer": "the first", "response": "<answer>A</answer>"}
    write(tmp_path / "train.jsonl", odd)
    own = {"components": [{"name": "overlong", "options": {"max_length": 8, "cache": 4}}]}
    for change in ({"rewards": own}, {"recipe": "sft"}):
        assert len(load_records(config_io.resolve(settings(tmp_path, **change)), "train")) == 1
    named = {"components": [{"name": "choice_exact"}, {"name": "no_such_reward"}]}
    with pytest.raises(UserError, match=r"train\.jsonl:1 .*must be letters"):
        load_records(config_io.resolve(settings(tmp_path, rewards=named)), "train")


def test_unusable_answers_are_skipped_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD, {**GOOD, "id": "odd", "answer": "?"})
    config = config_io.resolve(settings(tmp_path, data={"on_error": "skip"}))
    skipped: list[str] = []
    assert [r.id for r in load_records(config, "train", skipped=skipped)] == ["good"]
    assert len(skipped) == 1 and "(record 'odd'): answer of a choice" in skipped[0]


def test_every_video_reward_that_reads_an_answer_has_a_check() -> None:
    ours = {n: one for n, one in registered().items() if one.function.__module__.startswith("video.rewards.")}
    assert {n for n, one in ours.items() if one.check is None} == {"think_format"}
    assert set(catalogue.AUTO) == {task for one in ours.values() for task in one.tasks}


# ---- check-data by the inputs of a run -----------------------------------------------------------------------------


def test_check_data_takes_the_inputs_of_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_video(tmp_path / "a.mp4", steady(20), size=(64, 48)).name
    file = write(tmp_path / "train.jsonl", {**GOOD, "video": clip})
    assert run(["check-data", str(file)]) == 0
    out = capsys.readouterr().out
    assert "videos read with the default inputs; --config CONFIG takes those of a run: " in out
    assert "inputs.fps 2.0" in out and "inputs.video_max_pixels none" in out
    refused = {
        "inputs.max_video_seconds 1;": {"max_video_seconds": 1.0},
        "exceed the limit (sides 50": {"max_image_side": 50},
        "times": {"frames": "times"},
    }
    for said, inputs in refused.items():
        assert run(["check-data", str(file), "--config", str(settings(tmp_path, inputs=inputs))]) == 2
        out = capsys.readouterr().out
        (bad,) = (line for line in out.splitlines() if line.startswith(str(file) + ":1"))
        assert said in bad and "record 'good'" in bad
        ((key, value),) = inputs.items()
        assert "run.yaml says, family video, recipe tw-grpo: inputs.max_prompt_tokens" in out.splitlines()[-1]
        assert f"inputs.{key} {value}" in out.splitlines()[-1]
    file = write(tmp_path / "timed.jsonl", {**GOOD, "video": clip, "meta": {"times": [0.1, 0.5]}})
    assert run(["check-data", str(file), "--config", str(tmp_path / "run.yaml")]) == 0


def test_check_data_takes_what_the_recipe_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A response for sft, whose answers are not asked; --require says otherwise for held-out records."""
    config = str(settings(tmp_path, recipe="sft"))
    told = write(tmp_path / "told.jsonl", {k: v for k, v in GOOD.items() if k != "answer"} | {"response": "A"})
    assert run(["check-data", str(told), "--config", config]) == 0
    assert run(["check-data", str(told), "--config", config, "--require", "answer"]) == 2
    asked = write(tmp_path / "asked.jsonl", GOOD)
    assert run(["check-data", str(asked), "--config", config]) == 2
    assert "record without response" in capsys.readouterr().out
    assert run(["check-data", str(asked), "--config", config, "--require", "answer"]) == 0


def test_check_data_refuses_a_configuration_that_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "train.jsonl", GOOD)
    odd = settings(tmp_path, inputs={"frames": "count", "count": 5})
    assert run(["check-data", str(file), "--config", str(odd)]) == 2
    assert "inputs.count: 5 is odd" in capsys.readouterr().err
    assert run(["check-data", str(file), "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_pictures_are_checked_by_the_configuration_of_their_family(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "white").save(tmp_path / "a.png")
    file = write(tmp_path / "t.jsonl", {"task": "counting", "prompt": "?", "image": "a.png", "answer": 1})
    body = {"family": "vlm", "recipe": "grpo", "out": "run", "model": {"path": "."}, "data": {"train": "t.jsonl"}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(body | {"inputs": {"max_image_side": 32}}))
    assert run(["check-data", str(file)]) == 0
    assert "inputs" not in capsys.readouterr().out
    assert run(["check-data", str(file), "--config", str(tmp_path / "p.yaml")]) == 2
    out = capsys.readouterr().out
    assert "sides 32" in out and "family vlm, recipe grpo: " in out and "inputs.max_image_side 32" in out


# ---- check-reward --------------------------------------------------------------------------------------------------


def test_check_reward_refuses_records_it_cannot_compare_with() -> None:
    records = [Record("r", "choice", "?", answer="first")]
    with pytest.raises(UserError, match="record 'r': answer of a choice must be letters"):
        check_reward("video.rewards.choice:choice_reward", records=records)


def test_the_commands_of_the_page_of_rewards_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file of records of docs/video_rewards.md, and each command on it."""
    text = (ROOT / "docs" / "video_rewards.md").read_text(encoding="utf-8")
    (rows,) = re.findall(r"```json\n(.*?)```", text, flags=re.S)
    (tmp_path / "some.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.S)
    commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    assert len(commands) >= 3
    for words in commands:
        assert words[0] == "mmrl" and run(words[1:]) == 0, words
        out = capsys.readouterr().out
        if words[1] == "check-reward":
            assert "keeps the contract" in out and "values from 0 to 1" in out, out


def test_a_mistyped_task_is_named_by_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "train.jsonl", GOOD, {"id": "odd", "task": "choise", "prompt": "?", "answer": "A"})
    said = r"train\.jsonl:2 \(record 'odd'\): rewards: no default rewards for task 'choise'; did you mean 'choice'"
    assert run(["train", str(settings(tmp_path))]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert run(["check-data", str(tmp_path / "train.jsonl"), "--config", str(settings(tmp_path))]) == 2
    assert re.search(said, capsys.readouterr().out)
    config = config_io.resolve(str(settings(tmp_path)), ["data.on_error=skip"])
    skipped: list[str] = []
    load_extensions(config)
    assert len(load_records(config, "train", skipped=skipped)) == 1 and re.search(said, skipped[0])


def test_a_letter_beyond_the_options_is_told() -> None:
    check = registered()["choice"].check
    assert check is not None
    check(Record("a", "choice", "?", answer="B,D", meta={"options": ["1", "2", "3", "4"]}))
    check(Record("a", "choice", "?", answer="E"))  # nobody says how many there are
    with pytest.raises(UserError, match="record 'a': answer B,E names an option that is not there: meta.options has 4"):
        check(Record("a", "choice", "?", answer="B,E", meta={"options": ["1", "2", "3", "4"]}))
