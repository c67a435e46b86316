"""Entry points of the family: evaluation, chance, embedded clips, export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from video_files import steady, write_video
from video_models import make

from mmrl import config_io, families
from mmrl.config import Config
from mmrl.data.records import Record
from mmrl.training.rollouts import Rollouts
from mmrl.training.run import train
from mmrl.training.setup import prepare_machine
from video import tiny
from video.evaluate import chance, choice_metrics, first_look
from video.family import still
from video.policy import VideoPolicy

CLIPS = [tiny.noise_clip(4, 16, 16, seed=i) for i in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("qwen3_vl", tmp_path_factory.mktemp("model") / "m")


def config(out: Path, model: Path, **sections: Any) -> Config:
    body: dict[str, Any] = {
        "family": "video",
        "recipe": "grpo",
        "out": str(out),
        "threads": 1,
        "model": {"path": str(model)},
        "sampling": {"max_new_tokens": 4},
        "inputs": tiny.INPUTS,
        "data": {"train": "clips:train?n=4", "eval": "clips:eval?n=6"},
        "train": {"steps": 2, "prompts": 2, "group": 2},
        "checkpoint": {"every": 2},
        "eval": {"samples": 2},
        "log": {"tensorboard": False},
    }
    return config_io.build(body | sections, folder=Path.cwd())


def asked(i: int, answer: str, kind: str) -> Record:
    prompt = "Which?\nA one\nB two\nC three"
    return Record(f"r{i}", "choice", prompt, (), (CLIPS[i],), answer=answer, meta={"type": kind})


RECORDS = [asked(0, "A", "count"), asked(1, "A,C", "count"), asked(2, "B", "order"), asked(3, "A,B", "order")]


def said(letters: str) -> str:
    return f"<think>x</think><answer>{letters}</answer>"


def test_exact_and_soft_by_type() -> None:
    outputs = [said("A"), said("A"), said("A"), "A,B"]
    found = choice_metrics(outputs, RECORDS)
    assert found["exact"] == 0.5 and found["soft"] == pytest.approx(2.5 / 4)
    assert found["exact/count"] == 0.5 and found["soft/count"] == 0.75 and found["soft/order"] == 0.5
    assert found["exact/single"] == 0.5 and found["exact/multiple"] == 0.5 and found["soft/multiple"] == 0.75
    assert choice_metrics(["x"], [Record("r", "counting", "?", answer=1)]) == {}


class Sees(VideoPolicy):
    """Answers rightly by looking at the clip: the record whose clip it is."""

    def __init__(self) -> None:
        self.calls: list[list[Record]] = []

    def rollout(self, requests: Any, streams: Any, *, greedy: bool = False) -> Rollouts:
        import torch

        from mmrl.training.rollouts import row_keys

        assert greedy
        shown = [request.record for request in requests]
        self.calls.append(shown)
        answers = {id(record.videos[0]): str(record.answer) for record in RECORDS}
        return Rollouts(
            rows=[],
            records=shown,
            outputs=[said(answers[id(record.videos[0])]) for record in shown],
            info=[{"length": 1, "finished": True, "sample": 0} for _ in shown],
            keys=row_keys(requests),
            tables={"tokens": {"mask_nt": torch.ones(len(shown), 1, dtype=torch.bool)}},
        )


def test_one_that_looks_is_right_and_wrong_about_other_clips(model: Path, tmp_path: Path) -> None:
    policy = Sees()
    prepare_machine(config(tmp_path, model))  # the rewards of the family
    metrics, advice = first_look(policy, RECORDS, config(tmp_path, model))
    assert metrics["exact"] == metrics["soft"] == 1.0 and metrics["reward"] == 2.0 and advice == []
    assert len(policy.calls) == 2 and [r.id for r in policy.calls[1]] == [r.id for r in RECORDS]
    assert all(a.videos != b.videos for a, b in zip(policy.calls[1], RECORDS, strict=True))
    assert metrics["blind_soft"] < 0.6
    levels = chance(RECORDS, config(tmp_path, model))
    assert levels["soft"] == levels["blind_soft"] == 0.5 and levels["exact"] == 0.25
    assert levels["reward"] == pytest.approx(1.5), "A alone: 1 + .5 + 0 + .5, and the form"


def test_files_are_not_read_a_second_time(model: Path, tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", steady(6), size=(16, 16)))
    records = [replace(r, videos=(path,)) for r in RECORDS]
    policy = make(model)
    found = first_look(policy, records, config(tmp_path, model))[0]
    assert "blind_soft" not in found and "blind_soft" not in chance(records, config(tmp_path, model))
    assert len(policy.encoder.clips.kept) == 1


@pytest.mark.parametrize("recipe", ["grpo", "sft"])
def test_a_run_on_embedded_clips(recipe: str, model: Path, tmp_path: Path) -> None:
    folder = train(config(tmp_path / "run", model, recipe=recipe), progress=False)
    row = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert row["updates"] == 1 and (row["grad_norm"] > 0 if recipe == "sft" else row["sampler_gap"] < 1e-3)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["family"] == "video" and {"exact", "soft", "blind_soft", "reward"} <= set(summary["after"])
    shown = [json.loads(line) for line in (folder / "samples" / "step-000002.jsonl").read_text().splitlines()]
    with Image.open(folder / "samples" / shown[0]["image"]) as sheet:
        assert sheet.width > 4 * sheet.height, "eight frames side by side"
    assert set(shown[0]["answer"]) <= set("ABCDEF,")


def test_an_exported_run_loads_in_plain_transformers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmrl.training.export import Options, export_run
    from mmrl.training.exported import Wanted

    folder = train(config(tmp_path / "run", model, recipe="sft"), progress=False)
    told: list[str] = []
    done = export_run(folder, tmp_path / "out", Wanted(), Options(), told.append)
    assert "record 'clips:eval" in done.compared and not any("can be read" in line for line in told)
    assert done.form == "full" and done.difference <= done.tolerance
    from mmrl.cli.main import run

    path = write_video(tmp_path / "a.mp4", steady(8), size=(32, 16))
    asked = ["--prompt", "What?", "--video", str(path), "--out", str(tmp_path / "said")]
    monkeypatch.chdir(tmp_path)
    assert run(["generate", str(tmp_path / "out"), *asked]) == 0
    assert (tmp_path / "said" / "answer-0.png").is_file()


def test_generate_answers_about_a_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmrl.cli.main import run

    folder = train(config(tmp_path / "run", model, recipe="sft"), progress=False)
    path = write_video(tmp_path / "a.mp4", steady(16), size=(32, 16))
    asked = ["generate", str(folder), "--prompt", "What?", "--out", str(tmp_path / "said")]
    assert run([*asked, "--video", str(path), "--n", "2"]) == 0
    body = json.loads((tmp_path / "said" / "answers.json").read_text())
    assert len(body["answers"]) == 2 and body["prompt"] == "What?"
    with Image.open(tmp_path / "said" / body["answers"][0]["image"]) as sheet:
        assert sheet.width > 4 * sheet.height
    assert run([*asked, "--video", str(tmp_path / "none.mp4")]) == 2
    assert "--video" in capsys.readouterr().err
    (tmp_path / "broken.mp4").write_bytes(b"x" * 100)
    assert run([*asked, "--video", str(tmp_path / "broken.mp4")]) == 2
    assert "broken.mp4: not a video, or broken" in capsys.readouterr().err


def test_a_still_keeps_the_order_of_pictures_and_clips() -> None:
    picture = Image.new("RGB", (8, 8))
    assert still(replace(RECORDS[0], images=(picture,))).images[1] is picture
    parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "video"}]
    record = still(Record("r", "t", [{"role": "user", "content": parts}], (picture,), (CLIPS[0],)))
    assert [p["type"] for p in record.prompt[0]["content"]] == ["image", "text", "image"]
    assert record.images[0] is picture and record.images[1].size == (16, 16) and not record.videos
    assert parts[2] == {"type": "video"}, "the record itself is left alone"


def test_the_family_is_found_by_name() -> None:
    assert families.family("video").config == "video.config" and families.entry("video").POLICY is VideoPolicy
    assert len(families.entry("video").builtin("clips:eval?n=3")) == 3
