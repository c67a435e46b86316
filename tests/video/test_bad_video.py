"""Files that are no usable video: named, skipped and counted, or exit code 2, as the configuration says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml
from video_files import frame, steady, write_audio, write_video
from video_models import make

from mmrl import config_io
from mmrl.cli.main import run
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError
from mmrl.training.rollouts import Request
from mmrl.training.run import train
from mmrl.training.setup import load_records
from video import tiny
from video.check import check
from video.frames import Spec
from video.reading import look, read


def cut(path: Path, share: float, **options: Any) -> Path:
    whole = write_video(path, steady(60), **options).read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    return path


def damaged(path: Path) -> Path:
    """Index whole, pictures overwritten."""
    data = bytearray(write_video(path, steady(60), faststart=True, corner=True).read_bytes())
    at = data.index(b"mdat") + 4
    data[at:] = b"\x55" * (len(data) - at)
    path.write_bytes(bytes(data))
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


#: name -> (how to make it, what is said, whether the headers show it)
FAULTS: dict[str, tuple[Callable[[Path], Path], str, bool]] = {
    "empty": (lambda f: written(f / "empty.mp4", b""), "empty.mp4: the file is empty", True),
    "no video": (
        lambda f: written(f / "text.mp4", b"no video at all\n" * 50),
        "text.mp4: not a video, or broken",
        True,
    ),
    "without its index": (
        lambda f: cut(f / "noindex.mp4", 0.6),
        "noindex.mp4: (not a video|truncated)",
        True,
    ),
    "sound only": (lambda f: write_audio(f / "sound.mp4"), "sound.mp4: sound only", True),
    "truncated": (lambda f: cut(f / "cut.mp4", 0.5, faststart=True), "cut.mp4: truncated or broken", False),
    "damaged": (lambda f: damaged(f / "damaged.mp4"), "damaged.mp4: truncated or broken", False),
    "truncated webm": (
        lambda f: cut(f / "cut.webm", 0.5, codec="libvpx"),
        r"cut.webm: truncated or broken \(it ends at 2\.\d+ s, its header says 6\.00 s\)",
        False,
    ),
    "truncated mkv": (lambda f: cut(f / "cut.mkv", 0.5), "cut.mkv: truncated or broken", False),
    "narrow": (
        lambda f: write_video(f / "narrow.mp4", steady(4), size=(4000, 16)),
        "narrow.mp4: its frames of 4000 x 16 pixels are more than 200 times as long as wide; cut or pad them",
        True,
    ),
    "impossible name": (lambda f: f / "a\0b.mp4", "no such file", True),
    "playlist": (lambda f: _playlist(f), "list.mp4: not a video, or broken", True),
}


def _playlist(folder: Path) -> Path:
    """A list of other files, which is not followed."""
    write_video(folder / "other.mp4", steady(4))
    return written(folder / "list.mp4", f"ffconcat version 1.0\nfile {folder / 'other.mp4'}\n".encode())


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_names_the_file(fault: str, tmp_path: Path) -> None:
    build, said, in_headers = FAULTS[fault]
    path = build(tmp_path)
    with pytest.raises(UserError, match=f"^video .*{said}"):
        read(path, Spec(factor=28))
    if in_headers:
        with pytest.raises(UserError, match=said):
            look(path, Spec(factor=28))
    else:
        look(path, Spec(factor=28))


def test_no_damage_gets_past_the_reader(tmp_path: Path) -> None:
    """Random bytes changed, random ends cut off: a clip of the right form, or one clear line."""
    made = [write_video(tmp_path / name, steady(12), faststart=name == "a.mp4") for name in ("a.mp4", "b.mp4", "c.mkv")]
    whole = [path.read_bytes() for path in made]
    rng, refused = random.Random(0), 0
    for _ in range(60):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.choice([1, 5, 30])):
            data[rng.randrange(len(data) if rng.random() < 0.5 else 1000)] = rng.randrange(256)
        path = written(
            tmp_path / "x.mp4", bytes(data[: rng.randrange(1, len(data) + 1)] if rng.random() < 0.2 else data)
        )
        try:
            clip = read(path, Spec(factor=28, min_pixels=1, max_pixels=4 * 28 * 28, max_area=10**6))
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"video {path}: ") and "\n" not in str(error)
        else:
            assert clip.frames_nhwc.ndim == 4 and len(clip) == len(clip.times_n) and len(clip) % 2 == 0
    assert 10 < refused < 60


def test_sound_that_goes_on_and_a_late_start_are_no_faults(tmp_path: Path) -> None:
    """The header of a Matroska file tells the end of all streams, and counts from 0."""
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        pictures, sound = out.add_stream("libx264", rate=10), out.add_stream("aac", rate=8000)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            out.mux(pictures.encode(av.VideoFrame.from_ndarray(frame(number, 48, 64), format="rgb24")))
        out.mux(pictures.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 80_000), dtype=np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        out.mux(sound.encode(silence))
        out.mux(sound.encode())
    assert read(tmp_path / "a.mkv", Spec()).seconds == pytest.approx(2.0)
    late = write_video(tmp_path / "b.mkv", [5 + t for t in steady(30)])
    assert read(late, Spec()).seconds == pytest.approx(3.0)


def test_titles_in_another_alphabet_are_no_fault(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", steady(8), title="Caf~")
    path.write_bytes(path.read_bytes().replace(b"Caf~", b"Caf\xe9"))
    assert len(read(path, Spec())) == 4


def test_the_headers_of_a_whole_file_pass(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", steady(20))
    look(path, Spec(max_seconds=2.1))
    with pytest.raises(UserError, match=r"frames of 64 x 48 pixels exceed the limit \(sides 50"):
        look(path, Spec(max_side=50))
    with pytest.raises(UserError, match="no such file"):
        look(tmp_path / "none.mp4", Spec())


def test_the_policy_names_the_record(tmp_path: Path) -> None:
    policy = make(tiny.build("qwen3_vl", tmp_path / "model"), inputs={"max_video_seconds": 3})
    for name, path in (("cut", cut(tmp_path / "cut.mp4", 0.5, faststart=True)), ("long", _long(tmp_path))):
        with pytest.raises(RecordError, match=f"record '{name}': video .*{name}.mp4") as caught:
            policy.rollout([Request(Record(name, "choice", "?", (), (str(path),)), 1)], Streams(0, 0))
        assert caught.value.record_id == name


def _long(folder: Path) -> Path:
    return write_video(folder / "long.mp4", [float(i) for i in range(3700)], size=(16, 16), base=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("qwen3_vl", tmp_path_factory.mktemp("model") / "m")


def settings(folder: Path, model: Path, **data: Any) -> dict[str, Any]:
    return {
        "family": "video",
        "recipe": "grpo",
        "out": str(folder / "run"),
        "threads": 1,
        "model": {"path": str(model)},
        "sampling": {"max_new_tokens": 4},
        "inputs": {**tiny.INPUTS, "max_video_seconds": 100},
        "data": {"train": str(folder / "train.jsonl"), **data},
        "train": {"steps": 2, "prompts": 2, "group": 2},
        "checkpoint": {"every": 2},
        "eval": {"samples": 0},
        "log": {"tensorboard": False},
    }


def records(file: Path, paths: list[Path]) -> None:
    asked = {"task": "choice", "prompt": "Which?\nA one\nB two", "answer": "A"}
    rows = [{"id": path.stem, "video": path.name, **asked} for path in paths]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_skips_and_counts_bad_videos(tmp_path: Path, model: Path) -> None:
    """Two are told by their headers, one only when its frames are wanted; held-out files are read to the end."""
    good = [write_video(tmp_path / f"good{i}.mp4", steady(8), size=(16, 16)) for i in range(3)]
    late = cut(tmp_path / "late.mp4", 0.5, faststart=True)
    bad = [write_audio(tmp_path / "sound.mp4"), _long(tmp_path)]
    records(tmp_path / "train.jsonl", [*good, late, *bad])
    records(tmp_path / "eval.jsonl", [good[0], late])
    both = {"eval": str(tmp_path / "eval.jsonl"), "on_error": "skip", "shuffle": False}
    config = config_io.build(settings(tmp_path, model, **both), folder=tmp_path)
    skipped: list[str] = []
    assert [r.id for r in load_records(config, "train", skipped=skipped)] == ["good0", "good1", "good2", "late"]
    assert len(skipped) == 2 and "(record 'sound'): video" in skipped[0] and "max_video_seconds 100" in skipped[1]
    assert [r.id for r in load_records(config, "eval")] == ["good0"]
    folder = train(config, progress=False)
    row = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert row["step"] == 2 and row["skipped_records"] >= 1
    summary = json.loads((folder / "summary.json").read_text())
    assert {"exact", "soft", "exact/single", "soft/single", "reward"} <= set(summary["before"])
    assert summary["chance"]["soft"] == 1.0 and "blind_soft" not in summary["after"]


@pytest.mark.parametrize("which", ["train", "eval"])
def test_a_run_stops_with_2_at_a_bad_video(
    which: str, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_video(tmp_path / "good.mp4", steady(8), size=(16, 16))
    late = cut(tmp_path / "late.mp4", 0.5, faststart=True)
    records(tmp_path / "train.jsonl", [good, late] if which == "train" else [good])
    records(tmp_path / "eval.jsonl", [late] if which == "eval" else [good])
    body = settings(tmp_path, model, eval=str(tmp_path / "eval.jsonl"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(body))
    assert run(["train", str(tmp_path / "run.yaml")]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert "record 'late'" in told[-1] and "late.mp4: truncated or broken" in told[-1] and told[-1].count("record") == 1


def test_check_data_lists_every_bad_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_video(tmp_path / "good.mp4", steady(8), size=(32, 32))
    late = cut(tmp_path / "late.mp4", 0.5, faststart=True)
    records(tmp_path / "train.jsonl", [good, late, write_audio(tmp_path / "sound.mp4")])
    assert run(["check-data", str(tmp_path / "train.jsonl")]) == 2
    out = capsys.readouterr().out
    assert "1 good records, 2 bad" in out and "train.jsonl:2 (record 'late'): video" in out and "sound only" in out


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"frames": "count", "count": 5}, "inputs.count: 5 is odd"),
        ({"max_frames": 1, "min_frames": 1}, "inputs.max_frames: 1 frame is no pair"),
        ({"video_max_pixels": 100}, "inputs.video_max_pixels: 100 leaves no"),
        ({"min_frames": 20}, "more than max_frames"),
        ({"frame_min_pixels": 10, "frame_max_pixels": 9}, "more than frame_max_pixels"),
        ({"frame": "fps"}, "frame"),
    ],
)
def test_inputs_that_cannot_be_met(inputs: dict[str, Any], said: str, tmp_path: Path, model: Path) -> None:
    from mmrl.training.setup import check_family

    body = settings(tmp_path, model, train="clips:train") | {"inputs": inputs}
    with pytest.raises(UserError, match=said):
        check_family(config_io.build(body, folder=tmp_path))


def test_the_least_side_of_a_frame_is_that_of_the_model(tmp_path: Path) -> None:
    """The embedded model has tokens of 16 x 16 pixels, models of unknown shape are taken to have 28 x 28."""

    def checked(path: str, most: int) -> None:
        inputs = {"frames": "count", "count": 8, "video_max_pixels": most}
        body = {
            "family": "video",
            "recipe": "grpo",
            "model": {"path": path},
            "data": {"train": "clips:train"},
            "inputs": inputs,
        }
        check(config_io.build(body, folder=tmp_path))

    checked("embedded:video", 8 * 16**2)
    with pytest.raises(UserError, match="2047 leaves no 16 x 16 pixels to each of 8 frames"):
        checked("embedded:video", 8 * 16**2 - 1)
    with pytest.raises(UserError, match="2048 leaves no 28 x 28 pixels to each of 8 frames"):
        checked("someone/unknown", 8 * 16**2)
