"""How many frames, which, and how large."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.records import Record
from mmrl.errors import RecordError
from video.config import Inputs
from video.frames import Spec, evenly, frame_count, frame_size, on_screen, spec_of, times_of


@pytest.mark.parametrize(
    ("total", "seconds", "expected"),
    [(40, 4.0, 8), (75, 3.0, 6), (9000, 360.0, 16), (30, 1.0, 4), (3, 0.1, 2), (2, 0.1, 2), (1, 0.04, 1), (77, 3.7, 6)],
)
def test_two_frames_a_second_from_4_to_16(total: int, seconds: float, expected: int) -> None:
    assert frame_count(total, seconds, Spec()) == expected


def test_count_and_odd_numbers() -> None:
    assert frame_count(100, 9.0, Spec("count", count=6)) == 6
    assert frame_count(5, 9.0, Spec("count", count=6)) == 4
    assert frame_count(100, 3.5, Spec(even=False)) == 7
    assert frame_count(100, 60.0, Spec(max_frames=15)) == 14


def test_indices_at_a_constant_rate_are_a_rounded_line() -> None:
    assert evenly(np.arange(40) / 10, 8).tolist() == [0, 6, 11, 17, 22, 28, 33, 39]
    assert evenly(np.arange(6) * 0.04, 3).tolist() == [0, 2, 5], "2.5 goes to the even number"
    milliseconds = np.round(np.arange(100) * 1001 / 30000, 3)
    assert evenly(milliseconds, 5).tolist() == [0, 25, 50, 74, 99]


def test_at_a_variable_rate_what_was_on_the_screen_counts() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3, 4.0, 8.0])
    assert evenly(times, 5).tolist() == [0, 3, 4, 4, 5], "at 0, 2, 4, 6, 8 seconds"
    assert on_screen(times, (0.1, 3.9, 4.0, 100.0)).tolist() == [1, 3, 4, 5]


@given(
    n=st.integers(1, 64),
    total=st.integers(1, 500),
    gaps=st.lists(st.floats(0.01, 5), min_size=1, max_size=20),
)
def test_indices_are_in_the_file_and_do_not_fall(n: int, total: int, gaps: list[float]) -> None:
    times = np.cumsum(np.resize(gaps, total)) - gaps[0]
    found = evenly(times, min(n, total))
    assert found[0] == 0 and (np.diff(found) >= 0).all() and found[-1] <= total - 1


@settings(deadline=None)
@given(
    height=st.integers(2, 3000),
    width=st.integers(2, 3000),
    factor=st.sampled_from([8, 28, 32]),
    least=st.integers(1, 128 * 784),
    more=st.integers(0, 400 * 784),
)
def test_frames_have_the_size_that_the_processor_would_choose(
    height: int, width: int, factor: int, least: int, more: int
) -> None:
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

    least = max(least, 4 * factor**2)
    spec = Spec(factor=factor, min_pixels=least, max_pixels=least + more)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match="as long as wide"):
            frame_size(height, width, 4, spec)
        return
    expected = smart_resize(height, width, factor=factor, min_pixels=least, max_pixels=least + more)
    assert frame_size(height, width, 4, spec) == expected


def test_the_frames_share_the_budget_of_the_video() -> None:
    spec = Spec(factor=28, min_pixels=128 * 784, max_pixels=196 * 784)
    assert frame_size(1080, 1920, 16, spec) == (280, 504)
    small = Spec(factor=28, min_pixels=128 * 784, max_pixels=196 * 784, total_pixels=16 * 50 * 784)
    high, wide = frame_size(1080, 1920, 16, small)
    assert (high, wide) == (140, 252) and high * wide <= 50 * 784
    assert frame_size(1080, 1920, 8, small) == (196, 364), "fewer frames, larger ones"
    assert frame_size(1080, 1920, 16, Spec()) == (1080, 1920), "without a factor they stay"


def test_the_budget_of_the_video_is_kept() -> None:
    """By fps fewer frames are taken, down to min_frames; where even these have no merged patch each, nothing is."""
    tight = Spec(fps=10, factor=28, total_pixels=7 * 784)
    assert frame_count(100, 10.0, tight) == 6 and frame_size(480, 640, 6, tight) == (28, 28)
    assert frame_count(100, 10.0, Spec(fps=10, factor=28, total_pixels=2 * 784)) == 4, "min_frames"
    with pytest.raises(ValueError, match=r"video_max_pixels 5488 leaves no 28 x 28 pixels to each of 8 frames; raise"):
        frame_size(480, 640, 8, tight)


def test_every_input_that_matters_is_part_of_the_key() -> None:
    """A clip that was kept must not serve other settings."""
    changes = {
        "frames": "count", "fps": 3.0, "count": 8, "min_frames": 2, "max_frames": 20, "even_frames": False,
        "frame_min_pixels": 1000, "frame_max_pixels": 200_000, "video_max_pixels": 10**6, "max_video_seconds": 5.0,
        "max_image_side": 100, "max_image_pixels": 1000,
    }  # fmt: skip
    plain = spec_of(Inputs(), factor=28)
    for name, value in changes.items():
        assert spec_of(Inputs(**{name: value}), factor=28) != plain, name
    assert spec_of(Inputs(), factor=32) != plain and spec_of(Inputs(), factor=28, times=(1.0,)) != plain


@pytest.mark.parametrize(
    "times", [None, [], "1", [1, "2"], [2, 1], [1, 1], [-1, 2], [True], [float("nan")], [[1], [2], [3]], [[1], []]]
)
def test_wrong_times_name_their_record(times: object) -> None:
    with pytest.raises(RecordError, match="record 'r': .*meta `times`"):
        times_of(Record("r", "t", "?", videos=("a", "b"), meta={"times": times}))


def test_times_for_all_videos_or_for_each() -> None:
    assert times_of(Record("r", "t", "?", videos=("a", "b"), meta={"times": [1, 2.5]})) == ((1.0, 2.5), (1.0, 2.5))
    assert times_of(Record("r", "t", "?", videos=("a", "b"), meta={"times": [[0], [3]]})) == ((0.0,), (3.0,))
