"""From records with clips to prompts."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata
from video_files import steady, write_video
from video_models import make

from mmrl.data.records import Record
from mmrl.errors import RecordError
from mmrl.vlm.encode import messages_of
from video import tiny
from video.clips import Clip
from video.encode import Noise, VideoEncoder, grids, noisy
from video.frames import Spec
from video.reading import read

CLIP = tiny.noise_clip(4, 16, 24)
PICTURE = Image.new("RGB", (16, 24))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VideoEncoder]:
    root = tmp_path_factory.mktemp("tiny")
    return {kind: make(tiny.build(kind, root / kind)).encoder for kind in tiny.KINDS}


def text(encoder: VideoEncoder, record: Record) -> str:
    return str(encoder.processor.tokenizer.decode(encoder(record).ids))


def test_parts_that_no_message_places_come_first_videos_before_pictures() -> None:
    content = messages_of(Record("r", "t", "?", (PICTURE,), (CLIP, CLIP)), system=None, edit=None)[0]["content"]
    assert [part["type"] for part in content] == ["video", "video", "image", "text"]
    placed = [{"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "video"}]}]
    content = messages_of(Record("r", "t", placed, (PICTURE,), (CLIP,)), system=None, edit=" B")[0]["content"]
    assert [part["type"] for part in content] == ["image", "text", "video", "text"]
    with pytest.raises(RecordError, match="record 'r': prompt places 1 videos, videos lists 2; make them equal"):
        messages_of(Record("r", "t", placed, (), (CLIP, CLIP)), system=None, edit=None)


def test_qwen25_takes_the_time_as_positions(encoders: dict[str, VideoEncoder]) -> None:
    """4 frames of 16 x 24 pixels at 2 a second: 2 moments of 2 x 3 merged patches, 1 second apart, 4 positions a second
    in the tiny configuration (`tokens_per_second`)."""
    encoder = encoders["qwen2_5_vl"]
    prompt = encoder(Record("r", "t", "?", (), (CLIP,)))
    assert grids(prompt).tolist() == [[2, 4, 6]] and prompt.media["second_per_grid_ts"].tolist() == [1.0]
    assert prompt.media["pixel_values_videos"].shape == (2 * 4 * 6, 3 * 2 * 4 * 4)
    (at,) = (prompt.ids == encoder.shape.config.video_token_id).nonzero(as_tuple=True)
    assert len(at) == 2 * 2 * 3
    time, row, column = prompt.positions[:, at] - int(at[0])
    per_second = encoder.shape.config.vision_config.tokens_per_second
    assert time.tolist() == [0] * 6 + [per_second] * 6
    assert row.tolist() == [0, 0, 0, 1, 1, 1] * 2 and column.tolist() == [0, 1, 2] * 4
    assert prompt.next_position == int(prompt.positions.max()) + 1


@pytest.mark.parametrize(("seconds", "expected"), [(2.0, 1.0), (8.0, 4.0), (1.0, 0.5)])
def test_seconds_between_positions(seconds: float, expected: float, encoders: dict[str, VideoEncoder]) -> None:
    """Length over frames, times two frames a position: what the processor says of a file that it samples itself."""
    encoder = encoders["qwen2_5_vl"]
    clip = Clip(CLIP.frames_nhwc, np.arange(4) * seconds / 4, seconds)
    found = encoder(Record("r", "t", "?", (), (clip,))).media["second_per_grid_ts"]
    assert found.tolist() == [pytest.approx(expected)]
    rate, total = 10.0, round(10 * seconds)
    plain = encoder.processor(
        text=["<|video_pad|>"],
        videos=[CLIP.frames_nhwc],
        return_tensors="pt",
        videos_kwargs={
            "video_metadata": [VideoMetadata(total, rate, frames_indices=[0, 1, 2, 3])],
            "do_sample_frames": False,
            "input_data_format": "channels_last",
            "cap_pixels_per_frame": False,
        },
    )
    assert torch.allclose(torch.as_tensor(plain["second_per_grid_ts"]), found)


def test_qwen3_reads_the_time(encoders: dict[str, VideoEncoder]) -> None:
    """The mean of each pair of frames, in seconds, before its patches."""
    encoder = encoders["qwen3_vl"]
    record = Record("r", "t", "What?", (), (Clip(CLIP.frames_nhwc, np.array([0.0, 0.6, 1.1, 1.7]), 2.0),))
    said = text(encoder, record)
    one = "<|vision_start|>" + "<|video_pad|>" * 6 + "<|vision_end|>"
    assert f"<0.3 seconds>{one}<1.4 seconds>{one}" in said and said.count("seconds>") == 2
    assert "second_per_grid_ts" not in encoder(record).media


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_positions_are_the_models_own(kind: str, encoders: dict[str, VideoEncoder]) -> None:
    """A picture, a clip, another clip: `get_rope_index` of the whole, given all grids."""
    encoder = encoders[kind]
    record = Record("r", "t", "Which?", (PICTURE,), (CLIP, tiny.noise_clip(6, 8, 16, seed=1)))
    prompt = encoder(record)
    assert grids(prompt).tolist() == [[2, 4, 6], [3, 2, 4]] and len(prompt.media["image_grid_thw"]) == 1
    media = {k: v for k, v in prompt.media.items() if not k.startswith("pixel")}
    types = encoder.shape.token_types(prompt.ids[None])
    assert (types == 1).sum() == 6 and (types == 2).sum() == 12 + 6
    expected, _ = encoder.shape.inner.get_rope_index(prompt.ids[None], mm_token_type_ids=types, **media)
    assert torch.equal(prompt.positions, expected[:, 0])
    assert prompt.sizes == [((16, 24), (16, 24)), ((24, 16), (24, 16)), ((16, 8), (16, 8))]


def test_a_file_is_the_clip_that_it_holds(tmp_path: Path, encoders: dict[str, VideoEncoder]) -> None:
    path = str(write_video(tmp_path / "a.mp4", steady(20), size=(40, 24)))
    encoder = encoders["qwen3_vl"]
    record = Record("r", "t", "?", (), (path,))
    prompt = encoder(record)
    (clip,) = encoder.clips_of(record)
    assert clip.times_n.tolist() == pytest.approx([0, 0.6, 1.3, 1.9])
    assert prompt.clips == [  # type: ignore[attr-defined]
        {"seconds": clip.seconds, "times": clip.times_n.tolist(), "size": [40, 24], "model_size": [40, 24]}
    ]
    again = encoder(Record("s", "t", "?", (), (clip,)))
    assert torch.equal(again.media["pixel_values_videos"], prompt.media["pixel_values_videos"])
    assert torch.equal(again.ids, prompt.ids)


def test_chosen_times_are_told_to_the_model(tmp_path: Path, encoders: dict[str, VideoEncoder]) -> None:
    path = str(write_video(tmp_path / "a.mp4", steady(40), size=(40, 24)))
    shown = {}
    for kind, encoder in encoders.items():
        own = VideoEncoder(encoder.processor, encoder.shape, encoder.inputs.model_copy(update={"frames": "times"}))
        shown[kind] = own(Record("r", "t", "?", (), (path,), meta={"times": [1.0, 1.5, 2.0, 2.5]}))
        with pytest.raises(RecordError, match="record 'r'.*a.mp4: time 9 is wanted"):
            own(Record("r", "t", "?", (), (path,), meta={"times": [1, 9]}))
    assert shown["qwen2_5_vl"].media["second_per_grid_ts"].tolist() == [1.0]
    said = encoders["qwen3_vl"].processor.tokenizer.decode(shown["qwen3_vl"].ids)
    assert "<1.2 seconds>" in said and "<2.2 seconds>" in said


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_one_frame_is_a_pair(kind: str, tmp_path: Path, encoders: dict[str, VideoEncoder]) -> None:
    path = str(write_video(tmp_path / "a.mp4", [0.0], size=(16, 16)))
    assert grids(encoders[kind](Record("r", "t", "?", (), (path,)))).tolist() == [[1, 4, 4]]


def test_noise_is_the_streams_own_and_part_of_the_key(encoders: dict[str, VideoEncoder]) -> None:
    clip = Clip(np.full((4, 32, 32, 3), 128, dtype=np.uint8), CLIP.times_n, 2.0)
    loud = noisy(clip, Noise(20.0, 5))
    moved = loud.frames_nhwc.astype(float) - 128
    assert abs(moved.mean()) < 1 and moved.std() == pytest.approx(20, rel=0.03)
    assert np.array_equal(loud.frames_nhwc, noisy(clip, Noise(20.0, 5)).frames_nhwc)
    assert not np.array_equal(loud.frames_nhwc, noisy(clip, Noise(20.0, 6)).frames_nhwc)
    assert not np.array_equal(loud.frames_nhwc, noisy(clip, Noise(20.0, 5), 1).frames_nhwc), "of the second video"
    assert noisy(clip, Noise(0.0, 5)) is clip
    encoder, record = encoders["qwen3_vl"], Record("r", "t", "?", (), (CLIP,))
    plain, noised = encoder(record), encoder(record, noise=Noise(9.0, 1))
    assert encoder(record) is plain and encoder(record, noise=Noise(9.0, 1)) is noised
    assert not torch.equal(plain.media["pixel_values_videos"], noised.media["pixel_values_videos"])
    assert encoder(record, noise=Noise(9.0, 2)) is not noised and encoder(record, "Hint") is not plain


def test_text_and_pictures_alone_still_encode(encoders: dict[str, VideoEncoder]) -> None:
    encoder = encoders["qwen3_vl"]
    assert encoder(Record("r", "t", "Count")).media == {}
    assert set(encoder(Record("r", "t", "Count", (PICTURE,))).media) == {"pixel_values", "image_grid_thw"}


def test_too_long_a_prompt_names_what_to_lower(encoders: dict[str, VideoEncoder]) -> None:
    encoder = encoders["qwen2_5_vl"]
    short = VideoEncoder(encoder.processor, encoder.shape, encoder.inputs.model_copy(update={"max_prompt_tokens": 30}))
    with pytest.raises(
        RecordError, match="record 'r': the prompt has .* lower inputs.max_frames .or count., frame_max_pixels"
    ):
        short(Record("r", "t", "?", (), (CLIP,)))


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize(("n", "size"), [(50, (320, 240)), (37, (46, 34))])
def test_a_file_is_what_the_processor_makes_of_all_its_frames(
    kind: str, n: int, size: tuple[int, int], tmp_path: Path, encoders: dict[str, VideoEncoder]
) -> None:
    """A processor with the patches of the released models, told the numbers of the frames and left to resize them: the
    same pixel values, grid, seconds between positions, and text of the time stamps."""
    path = write_video(tmp_path / "a.mp4", steady(n), size=size, corner=True)
    plain = encoders[kind]
    processor = copy.copy(plain.processor)
    processor.video_processor = (Qwen2VLVideoProcessor if kind == "qwen2_5_vl" else Qwen3VLVideoProcessor)()
    side = processor.video_processor.patch_size * 2
    low, high = 4 * side**2, 20 * side**2
    inputs = plain.inputs.model_copy(update={"frame_min_pixels": low, "frame_max_pixels": high})
    ours = VideoEncoder(processor, plain.shape, inputs)
    record = Record("r", "t", "?", (), (str(path),))
    (clip,) = ours.clips_of(record)
    with pytest.MonkeyPatch.context() as patch:  # the positions are the tiny model's, for its own patches
        patch.setattr(plain.shape, "positions", lambda ids, media: torch.zeros(3, len(ids), dtype=torch.long))
        prompt = ours(record)
    index = np.round(np.linspace(0, n - 1, len(clip))).astype(int)
    shown = read(path, Spec("count", count=n, even=False)).frames_nhwc[index]
    share = 1 if kind == "qwen2_5_vl" else len(clip)  # of a frame; Qwen3-VL has limits for all frames together
    theirs = processor(
        text=[prompt.text],
        videos=[shown],
        return_tensors="pt",
        videos_kwargs={
            "video_metadata": [VideoMetadata(n, 10.0, duration=n / 10, frames_indices=index.tolist())],
            "do_sample_frames": False,
            "size": {"shortest_edge": low * share, "longest_edge": high * share},
            "cap_pixels_per_frame": False,
            "input_data_format": "channels_last",
        },
    )
    assert len(clip) == max(4, n // 5 - n // 5 % 2) and torch.equal(theirs["input_ids"][0], prompt.ids)
    for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
        assert (name in theirs) == (name in prompt.media)
        assert name not in theirs or torch.equal(torch.as_tensor(theirs[name]), prompt.media[name]), name
