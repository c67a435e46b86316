"""Clips of the next step are read and encoded beside the update: the same run, and no file is read in the step."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from video_files import steady, write_video
from video_models import make

from mmrl import config_io
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import RecordError
from mmrl.selection.uniform import Uniform
from mmrl.training.rollouts import Request
from mmrl.training.run import train
from video import reading, tiny
from video.encode import Noise


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("qwen2_5_vl", tmp_path_factory.mktemp("model") / "m")


def questions(folder: Path, n: int = 4) -> list[Record]:
    files = [write_video(folder / f"{i}.mp4", steady(8 + 4 * i), size=(32, 32)) for i in range(n)]
    return [Record(f"r{i}", "choice", "Which?", videos=(str(f),), answer="A") for i, f in enumerate(files)]


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that read a file, one for each."""
    names: list[str] = []
    plain = reading.read

    def noted(*given: Any) -> Any:
        names.append(threading.current_thread().name)
        return plain(*given)

    monkeypatch.setattr(reading, "read", noted)
    return names


def test_the_prompts_are_the_same_and_made_by_another_thread(model: Path, tmp_path: Path, readers: list[str]) -> None:
    records = questions(tmp_path)
    requests = [Request(record=r, n=2) for r in records]
    plain = make(model).rollout(requests, Streams(0, 1))
    assert len(readers) == 4 and not any(name.startswith("clips") for name in readers)
    readers.clear()
    policy = make(model)
    policy.look_ahead(requests)
    ahead = policy.rollout(requests, Streams(0, 1))
    assert len(readers) == 4 and all(name.startswith("clips") for name in readers)
    assert ahead.outputs == plain.outputs and policy.encoder.ready == {}
    for a, b in zip(ahead.rows, plain.rows, strict=True):
        assert torch.equal(a.prompt.media["pixel_values_videos"], b.prompt.media["pixel_values_videos"])
        assert torch.equal(a.prompt.positions, b.prompt.positions)


def test_what_is_asked_otherwise_is_encoded_otherwise(model: Path, tmp_path: Path) -> None:
    """A hint or noise makes another prompt; other records than those foreseen are read when they are asked for."""
    policy, (one, two, *_) = make(model), questions(tmp_path)
    policy.look_ahead([Request(one, 1)])
    policy._settle()
    noisy, hinted = policy.encoder(one, noise=Noise(20.0, 0)), policy.encoder(one, " Look!")
    assert len(policy.encoder.ready) == 1 and len(hinted) > len(policy.encoder(two)) == len(noisy)
    assert not torch.equal(noisy.media["pixel_values_videos"], policy.encoder(one).media["pixel_values_videos"])
    policy.look_ahead([Request(two, 1)])
    policy._settle()
    assert [record.id for record, _ in policy.encoder.ready.values()] == ["r1"]


def test_a_fault_is_raised_where_the_record_is_asked_for(model: Path, tmp_path: Path) -> None:
    policy, records = make(model), questions(tmp_path)
    Path(records[1].videos[0]).write_bytes(b"broken")
    requests = [Request(record=r, n=1) for r in records]
    policy.look_ahead(requests)
    assert len(policy.rollout([requests[0], *requests[2:]], Streams(0, 0))) == 3
    with pytest.raises(RecordError, match=r"r1.*1\.mp4"):
        policy.rollout(requests, Streams(0, 0))


def test_it_can_be_switched_off(model: Path, tmp_path: Path) -> None:
    policy = make(model, inputs={"read_ahead": False})
    policy.look_ahead([Request(r, 1) for r in questions(tmp_path)])
    assert policy._reading is None


def test_a_run_is_the_same_and_reads_in_its_first_step_only(model: Path, tmp_path: Path, readers: list[str]) -> None:
    rows = [
        {"id": r.id, "task": "choice", "prompt": r.prompt, "videos": list(r.videos), "answer": "A"}
        for r in questions(tmp_path, 6)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name: str, ahead: bool) -> dict[str, torch.Tensor]:
        body: dict[str, Any] = {
            "family": "video",
            "recipe": "grpo",
            "out": str(tmp_path / name),
            "threads": 1,
            "device": "cpu",
            "model": {"path": str(model)},
            "sampling": {"max_new_tokens": 4},
            "inputs": tiny.INPUTS | {"read_ahead": ahead, "cached_clips": 1},
            "data": {"train": str(tmp_path / "train.jsonl")},
            "rewards": {"components": [{"name": "overlong", "options": {"max_length": 4, "cache": 4}}]},
            "train": {"steps": 3, "prompts": 2, "group": 2},
            "checkpoint": {"every": 3},
            "log": {"tensorboard": False, "rollouts": 0},
        }
        folder = train(config_io.build(body, folder=tmp_path))
        (file,) = folder.glob("checkpoints/*3/model/*.safetensors")
        return load_file(file)

    plain = run("plain", False)
    assert len(readers) >= 6 and not any(name.startswith("clips") for name in readers)
    readers.clear()
    beside = run("beside", True)
    assert all(torch.equal(plain[name], beside[name]) for name in plain)
    assert sum(name.startswith("clips") for name in readers) == 4, (
        "steps 2 and 3; none is read for a step after the last"
    )
    assert [name.startswith("clips") for name in readers[:3]] == [False, False, True]


def test_the_selector_tells_its_next_plan_and_changes_nothing() -> None:
    records = [Record(f"r{i}", "choice", "?", answer="A") for i in range(5)]
    one, other = (Uniform(records, prompts=3, group=2, seed=4) for _ in range(2))
    for step in range(6):  # over the end of an epoch
        coming = one.coming(3)
        assert coming == one.plan(step) == other.plan(step) and one.state_dict() == other.state_dict()
