"""Which frames of a video the model sees, and how large: the arithmetic. Axes: n chosen frames, N frames of the file.

Loads no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mmrl.data.records import Record
from mmrl.errors import RecordError
from video.config import Inputs

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: Longer side over shorter side of a frame, at most; the processors refuse more.
MAX_RATIO = 200


@dataclass(frozen=True)
class Spec:
    """All that decides which pixels come out of a file; part of the key of a cached clip.

    times    seconds, for frames: times.
    factor   sides of a frame are multiples of it; 0 = frames keep their size.
    """

    frames: Literal["fps", "count", "times"] = "fps"
    fps: float = 2.0
    count: int = 16
    min_frames: int = 4
    max_frames: int = 16
    even: bool = True
    times: tuple[float, ...] = ()
    factor: int = 0
    min_pixels: int = 1
    max_pixels: int = 1 << 40
    total_pixels: int | None = None
    max_seconds: float | None = None
    max_side: int = 20_000
    max_area: int = 100_000_000


def spec_of(inputs: Inputs, *, factor: int, times: tuple[float, ...] = ()) -> Spec:
    """The `inputs` section for a model whose frames have sides that are multiples of `factor`."""
    return Spec(
        frames=inputs.frames,
        fps=inputs.fps,
        count=inputs.count,
        min_frames=inputs.min_frames,
        max_frames=inputs.max_frames,
        even=inputs.even_frames,
        times=times,
        factor=factor,
        min_pixels=inputs.frame_min_pixels,
        max_pixels=inputs.frame_max_pixels,
        total_pixels=inputs.video_max_pixels,
        max_seconds=inputs.max_video_seconds,
        max_side=inputs.max_image_side,
        max_area=inputs.max_image_pixels,
    )


def specs_of(record: Record, inputs: Inputs, *, factor: int) -> list[Spec]:
    """`spec_of` for each video of the record, with its own times where `inputs` take those. Raises as `times_of`."""
    times = times_of(record) if inputs.frames == "times" else ((),) * len(record.videos)
    return [spec_of(inputs, factor=factor, times=own) for own in times]


def times_of(record: Record) -> tuple[tuple[float, ...], ...]:
    """Seconds at which each video of the record is looked at: meta `times`, a list, or a list for each video.

    Raises RecordError for anything else, and for times that are negative or do not rise.
    """
    given: Any = record.meta.get("times")
    several = isinstance(given, (list, tuple)) and bool(given) and all(isinstance(one, (list, tuple)) for one in given)
    lists = given if several else [given] * len(record.videos)
    if len(lists) != len(record.videos):
        raise RecordError(
            record.id, f"meta `times` has {len(lists)} lists for {len(record.videos)} videos; give one for each"
        )
    return tuple(_times(one, record.id) for one in lists)


def _times(given: Any, record_id: str) -> tuple[float, ...]:
    good = isinstance(given, (list, tuple)) and given and all(_is_time(t) for t in given)
    if not good or any(b <= a for a, b in zip(given, given[1:], strict=False)):
        raise RecordError(
            record_id, f"inputs.frames: times needs meta `times`, rising seconds of each frame, got {given!r:.60}"
        )
    return tuple(float(t) for t in given)


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def frame_count(total: int, seconds: float, spec: Spec) -> int:
    """How many of `total` frames are taken of a video of that length, by fps or by count; at least 1.

    With fps: seconds * fps, not below min_frames (rounded up to even) nor above max_frames (rounded down), and never
    more than there are; above min_frames, no more than have `factor` x `factor` pixels each of total_pixels. `even`
    rounds down, but for a single frame, which is repeated later.
    """
    if spec.frames == "count":
        wanted: float = spec.count
    else:
        lowest = spec.min_frames + spec.min_frames % 2 if spec.even else spec.min_frames
        most = seconds * spec.fps
        if spec.total_pixels is not None and spec.factor:
            most = min(most, spec.total_pixels // spec.factor**2)
        wanted = min(max(most, lowest), spec.max_frames)
    n = math.floor(min(wanted, total) + 1e-6)
    return max(n - n % 2 if spec.even and n > 1 else n, 1)


def evenly(time_n: Floats, n: int) -> Ints:
    """Indices [n] of frames spread evenly over a video whose frames are shown at `time_n` [N], seconds.

    At a constant rate they are linspace(0, N - 1, n), rounded (TW-GRPO, arXiv 2505.24718). At a variable rate they are
    the frames on the screen at evenly spaced moments from the first frame to the last, so one may come twice.
    """
    if constant_rate(time_n):
        return np.round(np.linspace(0, len(time_n) - 1, n)).astype(np.int64)
    return on_screen(time_n, np.linspace(time_n[0], time_n[-1], n))


def on_screen(time_n: Floats, at: Floats | tuple[float, ...]) -> Ints:
    """Index of the frame that is shown at each of the moments `at`, seconds."""
    found = np.searchsorted(time_n, np.asarray(at, dtype=np.float64) + 1e-6, side="right") - 1
    return np.clip(found, 0, len(time_n) - 1).astype(np.int64)


def constant_rate(time_n: Floats) -> bool:
    """All distances alike, up to the rounding of a container that counts milliseconds."""
    gap = np.diff(time_n)
    if not len(gap):
        return True
    middle = float(np.median(gap))
    return bool(np.abs(gap - middle).max() <= max(0.0021, 0.05 * middle))


def frame_size(height: int, width: int, n: int, spec: Spec) -> tuple[int, int]:
    """(height, width) after resizing one of `n` frames: multiples of `factor`, the pixel count between the limits, the
    ratio of the sides nearly kept. The rule of the Qwen-VL processors, with the share of the video's own budget.

    Raises ValueError, with what to do, for sides whose ratio is above 200, and for a budget of the video that leaves no
    `factor` x `factor` pixels to a frame.
    """
    if spec.factor == 0:
        return height, width
    if max(height, width) > MAX_RATIO * min(height, width):
        raise ValueError(
            f"its frames of {width} x {height} pixels are more than {MAX_RATIO} times as long as wide; cut or pad them"
        )
    f = spec.factor
    if spec.total_pixels is not None and spec.total_pixels < n * f**2:
        raise ValueError(
            f"inputs.video_max_pixels {spec.total_pixels} leaves no {f} x {f} pixels to each of {n} frames; raise it, "
            "or take fewer frames"
        )
    most = spec.max_pixels if spec.total_pixels is None else min(spec.max_pixels, spec.total_pixels // n)
    least = min(spec.min_pixels, most)
    high, wide = round(height / f) * f, round(width / f) * f
    if high * wide > most:
        shrink = math.sqrt(height * width / most)
        high, wide = (max(f, math.floor(side / shrink / f) * f) for side in (height, width))
    elif high * wide < least:
        grow = math.sqrt(least / (height * width))
        high, wide = (math.ceil(side * grow / f) * f for side in (height, width))
    return max(high, f), max(wide, f)
