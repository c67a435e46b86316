"""Frames from real files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from video_files import numbers, remuxed, steady, write_video

from mmrl.errors import UserError
from video import reading
from video.clips import Clip
from video.frames import Spec
from video.reading import Clips, fitted, look, read


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for every frame that is decoded."""
    seen: list[str] = []
    inner = av.open

    class Watched:
        def __init__(self, container: Any) -> None:
            self.container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self.container, name)

        def decode(self, stream: Any) -> Any:
            for frame in self.container.decode(stream):
                seen.append(str(frame.pts))
                yield frame

    def opened(file: str, mode: str = "r", **options: Any) -> Any:
        return inner(file, mode, **options) if mode == "w" else Watched(inner(file, mode, **options))

    monkeypatch.setattr(reading.av, "open", opened)
    return seen


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("b.avi", "libx264"),
        ("a.ts", "libx264"),
    ],
)
def test_a_constant_rate_in_every_container(name: str, codec: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, steady(40), codec=codec, base=10)
    clip = read(path, Spec())
    assert numbers(clip.frames_nhwc) == [0, 6, 11, 17, 22, 28, 33, 39]
    assert np.allclose(clip.times_n, [0, 0.6, 1.1, 1.7, 2.2, 2.8, 3.3, 3.9]) and clip.seconds == pytest.approx(4.0)
    assert clip.frames_nhwc.dtype == np.uint8 and clip.size == (64, 48)


def test_a_variable_rate_goes_by_the_time_stamps(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 3.0, 6.0, 6.5, 7.0]
    path = write_video(tmp_path / "a.mp4", times)
    clip = read(path, Spec("count", count=8))
    assert np.allclose(clip.times_n, [0, 0.5, 0.5, 3.0, 3.0, 3.0, 6.0, 7.0])
    assert numbers(clip.frames_nhwc) == [0, 5, 5, 6, 6, 6, 7, 9]
    assert numbers(read(path, Spec("times", times=(0.25, 2.0, 6.5, 7.0))).frames_nhwc) == [2, 5, 8, 9]


def test_moments_are_rounded_once(tmp_path: Path) -> None:
    """Frame number / rate to the last bit, as a processor has it: else 1.35 is written 1.3 here and 1.4 there."""
    clip = read(write_video(tmp_path / "a.mp4", steady(50)), Spec("count", count=50))
    assert clip.times_n.tolist() == [i / 10 for i in range(50)]


def test_chosen_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", steady(30))
    clip = read(path, Spec("times", times=(0.0, 0.99, 2.9)))
    assert numbers(clip.frames_nhwc) == [0, 9, 29, 29], "an even number: the last one again"
    assert numbers(read(path, Spec("times", times=(0.0, 0.99, 2.9), even=False)).frames_nhwc) == [0, 9, 29]
    with pytest.raises(UserError, match=r"a\.mp4: time 3\.5 is wanted, but it ends after 3\.00 seconds"):
        read(path, Spec("times", times=(0.0, 3.5)))


@pytest.mark.parametrize(("rotation", "bright"), [(0, (0, 0)), (90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))])
def test_rotated_files_stand_upright(rotation: int, bright: tuple[int, int], tmp_path: Path) -> None:
    """The white quarter, stored upper left, goes where the metadata turn it (counter-clockwise)."""
    path = write_video(tmp_path / "a.mp4", steady(4), rotation=rotation, corner=True)
    clip = read(path, Spec())
    turned = rotation in (90, -90)
    assert clip.frames_nhwc.shape == ((4, 64, 48, 3) if turned else (4, 48, 64, 3))
    assert clip.size == ((48, 64) if turned else (64, 48))
    rows, columns = (slice(2, 8) if side == 0 else slice(-8, -2) for side in bright)
    assert clip.frames_nhwc[:, rows, columns].mean() > 245
    white = (clip.frames_nhwc[0] > 200).mean()
    assert 0.2 < white < 0.3


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4"])
def test_a_file_that_starts_between_key_frames(name: str, tmp_path: Path) -> None:
    """Cut out of a longer one without decoding it: what no decoder shows, the 10 frames before its key frame, is not
    counted, neither for the number of frames nor for the moments."""
    path = remuxed(write_video(tmp_path / f"whole{name[1:]}", steady(40)), tmp_path / name, lambda all_: all_[5:])
    clip = read(path, Spec(fps=10, max_frames=30))
    assert numbers(clip.frames_nhwc) == list(range(10, 40)) and clip.seconds == pytest.approx(3.0)
    assert clip.times_n[0] == 0 and numbers(read(path, Spec("times", times=(0.5, 1.9))).frames_nhwc) == [15, 29]


def test_packets_that_are_never_shown_are_no_frames(tmp_path: Path) -> None:
    """VP8 has packets that only others refer to: bit 4 of the first byte says that a frame is shown."""

    def hidden(packets: list[av.Packet]) -> list[av.Packet]:
        further = []
        for packet in packets[5::10]:
            data = bytearray(bytes(packet))
            data[0] &= ~0x10
            copy = av.Packet(bytes(data))
            copy.pts = copy.dts = packet.pts + 1
            copy.time_base = packet.time_base
            further.append(copy)
        return sorted([*packets, *further], key=lambda p: p.pts)

    path = remuxed(write_video(tmp_path / "whole.webm", steady(40), codec="libvpx"), tmp_path / "a.webm", hidden)
    clip = read(path, Spec())
    assert np.allclose(clip.times_n, [0, 0.6, 1.1, 1.7, 2.2, 2.8, 3.3, 3.9])
    assert np.abs(np.array(numbers(clip.frames_nhwc)) - [0, 6, 11, 17, 22, 28, 33, 39]).max() <= 1


def test_one_frame_comes_twice(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [0.0])
    clip = read(path, Spec())
    assert len(clip) == 2 and clip.times_n.tolist() == [0, 0]
    assert np.array_equal(clip.frames_nhwc[0], clip.frames_nhwc[1])
    assert len(read(path, Spec(even=False))) == 1


def test_frames_are_resized_as_the_processors_do(tmp_path: Path) -> None:
    from transformers import Qwen2VLVideoProcessor

    path = write_video(tmp_path / "a.mp4", steady(12), size=(200, 120), corner=True)
    whole = read(path, Spec())
    small = read(path, Spec(factor=28, min_pixels=1, max_pixels=60 * 84))
    assert small.frames_nhwc.shape[1:3] == (28, 84) and small.size == (200, 120)
    processor = Qwen2VLVideoProcessor(size={"shortest_edge": 1, "longest_edge": 60 * 84}, cap_pixels_per_frame=False)
    plain = {"do_sample_frames": False, "input_data_format": "channels_last", "return_tensors": "pt"}
    theirs = processor([whole.frames_nhwc], **plain)
    ours = processor([small.frames_nhwc], do_resize=False, **plain)
    assert torch.equal(theirs["video_grid_thw"], ours["video_grid_thw"])
    assert torch.equal(theirs["pixel_values_videos"], ours["pixel_values_videos"])


def test_only_what_is_needed_is_decoded(tmp_path: Path, decoded: list[str]) -> None:
    """An hour at one frame a second, a key frame every 10: 4 frames cost at most 4 such stretches."""
    path = write_video(tmp_path / "a.mp4", [float(i) for i in range(3600)], size=(32, 32), base=1)
    clip = read(path, Spec(max_frames=4))
    assert clip.times_n.tolist() == [0, 1200, 2399, 3599] and clip.seconds == 3600
    assert [n % 42 for n in (0, 1200, 2399, 3599)] == [n % 42 for n in numbers(clip.frames_nhwc)]
    assert 4 <= len(decoded) <= 4 * 13
    decoded.clear()
    with pytest.raises(UserError, match=r"a\.mp4: 3600\.0 seconds are more than inputs\.max_video_seconds 600"):
        read(path, Spec(max_seconds=600))
    with pytest.raises(UserError, match="3600.0 seconds"):
        look(path, Spec(max_seconds=600))
    assert not decoded, "refused before anything is decoded"


def test_clips_are_kept_newest_last(tmp_path: Path, decoded: list[str]) -> None:
    paths = [write_video(tmp_path / f"{i}.mp4", steady(4)) for i in range(3)]
    clips = Clips(2)
    first = clips(str(paths[0]), Spec())
    once = len(decoded)
    assert clips(str(paths[0]), Spec()) is first and len(decoded) == once
    assert clips(str(paths[0]), Spec(fps=3.0)) is not first, "another choice of frames"
    clips(str(paths[0]), Spec())
    clips(str(paths[1]), Spec())
    assert len(clips.kept) == 2 and clips(str(paths[0]), Spec()) is first, "the least used one went"
    write_video(paths[0], steady(6))
    os.utime(paths[0], ns=(1, 1))
    assert clips(str(paths[0]), Spec()) is not first, "the file changed"
    assert not Clips(0).kept and len(Clips(0)(str(paths[0]), Spec())) == 4


def test_clips_in_memory_are_fitted() -> None:
    clip = Clip(np.zeros((3, 20, 30, 3), dtype=np.uint8), np.array([0.0, 1.0, 2.0]), 3.0)
    found = fitted(clip, Spec(factor=8, min_pixels=1, max_pixels=10**6))
    assert found.frames_nhwc.shape == (4, 16, 32, 3) and found.times_n.tolist() == [0, 1, 2, 2]
    assert found.size == (30, 20) and found.seconds == 3.0 and found.shown_size == (32, 16)
    assert Clips(0)(clip, Spec(even=False)).frames_nhwc.shape == (3, 20, 30, 3)
    with pytest.raises(UserError, match="3 frames, but 2 times"):
        fitted(Clip(clip.frames_nhwc, clip.times_n[:2], 3.0), Spec())
    with pytest.raises(UserError, match="uint8"):
        fitted(Clip(clip.frames_nhwc.astype(np.float32), clip.times_n, 3.0), Spec())  # type: ignore[arg-type]
