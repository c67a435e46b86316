"""Video files made by the tests: every frame tells its number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 6  # grey levels between neighbouring frames


def frame(number: int, height: int, width: int, corner: bool = False) -> np.ndarray:
    """A grey of `STEP * number`; with `corner` its upper left quarter is white."""
    picture = np.full((height, width, 3), STEP * number % 252, dtype=np.uint8)
    if corner:
        picture[: height // 2, : width // 2] = 255
    return picture


def write_video(
    path: Path,
    times: Sequence[float],
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    key_every: int = 10,
    rotation: int = 0,
    corner: bool = False,
    base: int = 1000,
    faststart: bool = False,
    title: str = "",
) -> Path:
    """One frame at each of the times (seconds, multiples of 1 / base); `size` (width, height)."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as out:
        if title:
            out.metadata["title"] = title
        gap = times[1] - times[0] if len(times) > 1 else 0.1
        stream = out.add_stream(codec, rate=Fraction(gap).limit_denominator(1000) ** -1)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = key_every
        stream.codec_context.time_base = Fraction(1, base)
        stream.bit_rate = 4_000_000
        if codec == "libx264":
            stream.options = {"crf": "1", "bf": "2", "sc_threshold": "0"}
        if rotation:
            stream.set_display_rotation(rotation)
        for number, time in enumerate(times):
            picture = av.VideoFrame.from_ndarray(frame(number, size[1], size[0], corner), format="rgb24")
            picture.pts, picture.time_base = round(time * base), Fraction(1, base)
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    return path


def steady(n: int, rate: float = 10.0) -> list[float]:
    return [i / rate for i in range(n)]


def write_audio(path: Path, seconds: float = 0.5) -> Path:
    rate = 8000
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=rate)
        silence = np.zeros((1, int(rate * seconds)), dtype=np.float32)
        sound = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        sound.sample_rate = rate
        out.mux(stream.encode(sound))
        out.mux(stream.encode())
    return path


def numbers(frames_nhwc: np.ndarray) -> list[int]:
    """Which frame of the file each one is, from the grey of its lower right corner."""
    return [round(float(f[-8:-2, -8:-2].mean()) / STEP) for f in frames_nhwc]


def remuxed(source: Path, path: Path, packets: Callable[[list[av.Packet]], list[av.Packet]]) -> Path:
    """The video of `source` with other packets, nothing decoded."""
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for packet in packets([p for p in given.demux(video=0) if p.size]):
            packet.stream = stream
            out.mux(packet)
    return path
