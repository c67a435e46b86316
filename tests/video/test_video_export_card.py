"""The card of an exported video model: its code runs in plain transformers and shows the model what the run showed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText
from transformers.video_utils import VideoMetadata
from video_files import steady, write_video
from video_models import make

from mmrl.data.records import Record
from mmrl.training.export import Options, export_run
from mmrl.training.exported import Wanted
from mmrl.vlm import plain_forward
from mmrl.vlm.config import Model
from video import tiny
from video.config import Inputs
from video.encode import VideoEncoder
from video.policy import VideoPolicy
from video.usage import note, usage

ASKED = 'Which?\n\nA "one"\nB it\'s two'
SMALL = {"frame_min_pixels": 16 * 16, "frame_max_pixels": 24 * 24}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny.build(kind, root / kind) for kind in tiny.KINDS}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reload by a fresh process, run here: a process of its own takes seconds."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "mmrl")
            plain_forward.main(command[3])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("mmrl.vlm.reload.subprocess.run", run)


def ran(code: str, folder: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the code leaves, run beside a clip.mp4."""
    monkeypatch.chdir(clip.parent)
    short = code.replace('folder = "."', f"folder = {str(folder)!r}").replace("max_new_tokens=256", "max_new_tokens=3")
    assert short.count("max_new_tokens=3") == 1 and clip.name == "clip.mp4"
    found: dict[str, Any] = {}
    exec(compile(short, "card", "exec"), found)
    return found


def same(batch: Any, policy: VideoPolicy, clip: Path, words: str, **record: Any) -> None:
    """All that the processor gives is what the run's encoder gives: ids, grid, every pixel, the moments in time."""
    prompt = policy.encoder(Record("r", "choice", words, videos=(str(clip),), **record))
    ids = torch.as_tensor(batch["input_ids"])[0]
    assert ids.tolist() == prompt.ids.tolist()
    media = {name: torch.as_tensor(batch[name]) for name in VideoEncoder.MEDIA if name in batch}
    assert media.keys() == prompt.media.keys() >= {"video_grid_thw", "pixel_values_videos"}
    assert torch.equal(media["video_grid_thw"], prompt.media["video_grid_thw"])
    assert torch.equal(media["pixel_values_videos"], prompt.media["pixel_values_videos"])
    if len(prompt.media.get("second_per_grid_ts", ())) and media["video_grid_thw"][0, 0] > 1:
        found, wanted = (float(m["second_per_grid_ts"][0]) for m in (media, prompt.media))
        assert found == pytest.approx(wanted, abs=1e-6)
    assert torch.equal(policy.shape.positions(ids, media), prompt.positions)


def body(readme: str) -> str:
    return re.search(r"```python\n(.*?)\n```", readme, re.S)[1]  # type: ignore[index]


def config_file(path: Path, **sections: Any) -> str:
    plain = {
        "family": "video",
        "recipe": "grpo",
        "device": "cpu",
        "data": {"train": "clips:train", "eval": "clips:eval"},
    }
    path.write_text(yaml.safe_dump(plain | sections))
    return str(path)


# ---- exported ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_this_process")
def test_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_video(tmp_path / "clip.mp4", steady(37, 12.5), size=(80, 48))
    inputs = {"frame_min_pixels": 1536, "frame_max_pixels": 1536, "fps": 3.0}
    config = config_file(tmp_path / "c.yaml", model={"path": "embedded:video"}, inputs=inputs)
    source = make("embedded:video", inputs=inputs)  # type: ignore[arg-type]
    source.processor.save_pretrained(tmp_path / "model")
    source.model.save_pretrained(tmp_path / "model")
    done = export_run(tmp_path / "model", tmp_path / "out", Wanted(), Options(config=config), lambda line: None)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(readme.split("---\n")[1])["pipeline_tag"] == done.pipeline == "video-text-to-text"
    assert body(readme) == done.usage and "picture.png" not in readme
    assert "each video 3 frames a second (4 to 16, an even number) spread evenly, with about 1536 pixels" in readme
    (line,) = [line for line in done.usage.split("\n") if '{"type": "video"}' in line]
    words = ast.literal_eval(line.strip().rstrip(","))["content"][1]["text"]
    assert words.count("\n") > 3, "an embedded question, on one line of code"
    found = ran(done.usage, tmp_path / "out", clip, monkeypatch)
    assert found["frames"].shape == (8, 3, 16, 48), (
        "2.96 seconds at 3 a second, an even number; 80 x 48 in at most 1536 pixels"
    )
    same(found["batch"], source, clip, words)
    assert found["rows"].shape[1] > found["batch"]["input_ids"].shape[1]


@pytest.mark.usefixtures("in_this_process")
def test_an_adapter_alone(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_video(tmp_path / "clip.mp4", steady(20), size=(32, 16))
    base = AutoModelForImageTextToText.from_pretrained(models["qwen3_vl"], dtype=torch.float32)
    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped.peft_config["default"].base_model_name_or_path = str(models["qwen3_vl"])
    wrapped.save_pretrained(tmp_path / "adapter")
    config = config_file(tmp_path / "c.yaml", inputs=tiny.INPUTS)
    done = export_run(
        tmp_path / "adapter", tmp_path / "out", Wanted(adapter_only=True), Options(config=config), lambda line: None
    )
    (tmp_path / models["qwen3_vl"].name).symlink_to(models["qwen3_vl"])  # the card names the folder only
    found = ran(done.usage, tmp_path / "out", clip, monkeypatch)
    assert type(found["model"]).__name__ == "PeftModel"
    same(found["batch"], make(models["qwen3_vl"]), clip, found["messages"][0]["content"][1]["text"])


# ---- the same frames, the same pixels ----------------------------------------------------------------------------

FILES = {
    "long": (steady(95, 25.0), (50, 34)),
    "short": (steady(3), (20, 44)),
    "single": ([0.0], (32, 16)),
    "thin": (steady(12), (6, 20)),
}


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize(
    ("file", "inputs", "frames"),
    [
        ("long", {"fps": 1.9}, 6),  # 3.8 seconds: 7.22
        ("long", {"fps": 2.5}, 8),  # 9.5: the last one is left out
        ("long", {"fps": 2.5, "even_frames": False}, 9),
        ("long", {"fps": 0.5, "min_frames": 5}, 6),
        ("long", {"fps": 25.0, "max_frames": 7}, 6),
        ("long", {"fps": 2.5, "video_max_pixels": 8 * 180}, 8),
        ("long", {"fps": 25.0, "max_frames": 90, "video_max_pixels": 1000}, 14),  # no more than have 8 x 8 pixels
        ("long", {"frames": "count", "count": 10, "system": 'Say "it"\''}, 10),
        ("short", {"frames": "count", "count": 10}, 2),
        ("short", {"frames": "count", "count": 3, "even_frames": False}, 3),
        ("single", {"fps": 2.0}, 1),
        ("thin", {"fps": 2.0}, 4),  # made larger
        ("thin", {"fps": 2.0, "video_max_pixels": 600}, 4),  # not as much as frame_min_pixels would
        ("single", {"fps": 2.0, "video_max_pixels": 700}, 1),
        ("long", {"frames": "times"}, 3),
        ("long", {"frames": "times", "even_frames": False}, 3),
    ],
)
def test_what_the_processor_makes_of_a_file_is_what_the_run_made(
    kind: str,
    file: str,
    inputs: dict[str, Any],
    frames: int,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times, size = FILES[file]
    clip = write_video(tmp_path / "clip.mp4", times, size=size, corner=True)
    meta = {"times": [0.3, 1.0, 3.1]}
    record = Record("r", "choice", ASKED, videos=(str(clip),), meta=meta)
    options, own = Model(path=str(models[kind])), SMALL | inputs
    found = ran(usage(options, Inputs(**own), record, adapter_only=False), models[kind], clip, monkeypatch)
    assert len(found["frames"]) == frames
    same(found["batch"], make(models[kind], inputs=own), clip, ASKED, meta=meta)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_processor_would_take_other_frames(
    kind: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the code of the card chooses, and the note says so."""
    clip = write_video(tmp_path / "clip.mp4", FILES["long"][0], size=(24, 24))
    record = Record("r", "choice", ASKED, videos=(str(clip),))
    code = usage(Model(path=str(models[kind])), Inputs(**SMALL, fps=2.5), record, adapter_only=False)
    found = ran(code, models[kind], clip, monkeypatch)
    told = VideoMetadata(total_num_frames=95, fps=25.0, duration=3.8)
    own = found["processor"].video_processor.sample_frames(told, fps=2.5)
    assert own.tolist() != found["seen"].frames_indices.tolist()
    assert "may be other frames" in note(Inputs())


# ---- what is asked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clips", "frames"), [(0, "fps"), (0, "times"), (2, "fps")])
def test_a_question_that_is_not_about_one_video_is_not_repeated(
    clips: int, frames: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_video(tmp_path / "clip.mp4", steady(20), size=(16, 16))
    record = Record("r", "choice", "Which of both?", videos=(str(clip),) * clips)
    inputs = Inputs.model_validate(SMALL | {"frames": frames})
    code = usage(Model(path=str(models["qwen3_vl"])), inputs, record, adapter_only=False)
    assert ran(code, models["qwen3_vl"], clip, monkeypatch)["text"].count("What happens in the video?") == 1
    assert "Which of both?" not in code


def test_the_note_tells_the_budget_and_the_way_frames_are_chosen() -> None:
    assert "16 frames, an even number spread" in note(Inputs(frames="count"))
    assert "at most 9000 in all" in note(Inputs(video_max_pixels=9000))
    assert "the seconds that each record names, with" in note(Inputs(frames="times"))
