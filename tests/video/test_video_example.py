"""examples/finetune_video.py as it is: two steps on files with a tiny model; without arguments the embedded one."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from video_files import steady, write_video

from mmrl.config import Config
from mmrl.rewards import registry
from mmrl.training import run as running
from video import tiny

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "finetune_video.py"


def start(arguments: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path, *, steps: int) -> list[Config]:
    """Runs the example in `folder`; the configurations that it trained. With 0 steps nothing is trained."""
    import video.rewards.catalogue  # noqa: F401  (what it registers must outlive the copy below)

    monkeypatch.setattr(registry, "_REWARDS", dict(registry.registered()))
    found: list[Config] = []
    plain = running.train

    def train(config: Config) -> Path:
        found.append(config)
        config.train.steps = steps
        config.device = "cpu"
        config.sampling.max_new_tokens = 8
        return plain(config) if steps else folder

    monkeypatch.chdir(folder)
    monkeypatch.setattr(running, "train", train)
    monkeypatch.setattr("sys.argv", ["finetune_video.py", *arguments])
    if not steps:
        monkeypatch.setattr("mmrl.report.write_report", lambda *_: None)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    return found


def test_it_trains_on_video_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny.build("qwen2_5_vl", tmp_path / "model")
    rows: list[dict[str, Any]] = []
    for i in range(4):
        write_video(tmp_path / f"{i}.mp4", steady(20), size=(64, 48))
        rows.append({"id": str(i), "task": "choice", "prompt": "Which?", "videos": [f"{i}.mp4"], "answer": "A,C"})
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (config,) = start(["model", "mine.jsonl"], monkeypatch, tmp_path, steps=2)
    assert config.recipe == "tw-grpo" and config.model.adapter.kind == "lora"
    out = tmp_path / "runs" / "my-video"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "seconds/step" in line] == [1, 2]
    assert any("looks" in key for key in lines[-1]) and (out / "report.html").is_file()


def test_without_arguments_it_is_the_embedded_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (config,) = start([], monkeypatch, tmp_path, steps=0)
    assert config.model.path == "embedded:video" and config.data.train == "clips:train"
    assert config.model.adapter.kind == "none" and config.inputs.frame_max_pixels == 48 * 32


@pytest.mark.parametrize("arguments", [["model"], ["model", "a.jsonl", "b.jsonl", "c"]])
def test_other_arguments_show_how_to_call_it(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="python examples/finetune_video.py Qwen"):
        start(arguments, monkeypatch, tmp_path, steps=0)
