"""Frames from video files with PyAV: found by their time stamps, reached from the key frame before them, kept small.

Axes: n chosen frames, N frames of the file.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from mmrl.errors import UserError
from video.clips import Clip
from video.frames import Floats, Ints, Spec, constant_rate, evenly, frame_count, frame_size, on_screen

#: Only the file itself is read: a playlist that calls itself a video names other files, or addresses.
_OPTIONS = {"protocol_whitelist": "file"}
#: Containers with an index of key frames, whose seeking can be trusted; others are decoded from the start.
_INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
_BROKEN = (av.error.FFmpegError, OSError, ValueError, EOFError)

Frames = npt.NDArray[np.uint8]


class _MissedError(Exception):
    """A seek led past the wanted frame, or to a damaged one."""


@dataclass(frozen=True)
class _Table:
    """The frames of a file in the order in which they are shown; nothing was decoded for it.

    tick_n   int64 [N], time stamps in units of `unit` seconds; key_k those of key frames.
    """

    tick_n: Ints
    key_k: Ints
    unit: Fraction

    @property
    def time_n(self) -> Floats:
        """Seconds [N] from the first frame."""
        # one rounding, as frame number / rate has: a time stamp half way between two tenths is written alike
        found: Floats = (self.tick_n - self.tick_n[0]) * self.unit.numerator / self.unit.denominator
        return found

    @property
    def gap(self) -> float:
        return float(np.median(np.diff(self.time_n))) if len(self.tick_n) > 1 else 0.0


def read(path: str | Path, spec: Spec) -> Clip:
    """The chosen frames of a file, turned as its metadata say, resized to the limits of `spec`.

    A video of one frame gives it twice where an even number is asked for. Raises UserError naming the file: missing,
    empty, no video, sound only, broken, longer than max_seconds, too large, shorter than a wanted time.
    """
    with _open(path, spec) as (container, stream):
        table = _table(container, stream, path)
        seconds = _length(container, stream, table)
    _check_length(path, seconds, spec)
    index_n = _choose(path, table, seconds, spec)
    if spec.even and len(index_n) % 2:
        index_n = np.append(index_n, index_n[-1])
    pictures, size = _pictures(path, table, sorted(set(index_n.tolist())), len(index_n), spec)
    frames = np.stack([pictures[i] for i in index_n.tolist()])
    return Clip(frames, table.time_n[index_n], seconds, size)


def look(path: str | Path, spec: Spec) -> None:
    """Opens the file and reads its headers, decodes nothing. Raises UserError for what they show."""
    with _open(path, spec) as (container, stream):
        _check_length(path, _declared(container, stream), spec)
        _target(path, (stream.codec_context.width, stream.codec_context.height), 1, spec)


def fitted(clip: Clip, spec: Spec) -> Clip:
    """A clip in memory as `read` would give it: resized, the last frame repeated where an even number is asked for.

    Its frames were chosen by whoever made it. Raises UserError for a clip without frames or of another form.
    """
    frames = clip.frames_nhwc
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise UserError(f"clip in memory: frames must be uint8 [n, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    if len(clip.times_n) != len(frames):
        raise UserError(f"clip in memory: {len(frames)} frames, but {len(clip.times_n)} times; make them equal")
    times = clip.times_n
    if spec.even and len(frames) % 2:
        frames, times = np.concatenate([frames, frames[-1:]]), np.append(times, times[-1])
    try:
        target = frame_size(frames.shape[1], frames.shape[2], len(frames), spec)
    except ValueError as error:
        raise UserError(f"clip in memory: {error}") from error
    return replace(clip, frames_nhwc=_resized(frames, target), times_n=times, size=clip.size or clip.shown_size)


class Clips:
    """The newest clips that were read, `limit` of them at most. A file that changed is read again."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: OrderedDict[tuple[Any, ...], Clip] = OrderedDict()

    def __call__(self, source: str | Path | Clip, spec: Spec) -> Clip:
        if isinstance(source, Clip):
            return fitted(source, spec)
        key = (str(source), *_stamp(source), spec)
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        clip = read(source, spec)
        if self.limit:
            self.kept[key] = clip
            if len(self.kept) > self.limit:
                self.kept.popitem(last=False)
        return clip


def _stamp(path: str | Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # the latter for a name that no file can have
        raise UserError(f"video {path}: no such file") from None
    return found.st_mtime_ns, found.st_size


@contextmanager
def _open(path: str | Path, spec: Spec) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream); what FFmpeg says of a broken file becomes a UserError."""
    if _stamp(path)[1] == 0:
        raise UserError(f"video {path}: the file is empty; replace it")
    try:
        container: Any = av.open(str(path), options=_OPTIONS, metadata_errors="replace")
    except _BROKEN as error:
        raise UserError(f"video {path}: not a video, or broken ({_said(error)}); replace the file") from error
    try:
        # the cover of a song is a stream of pictures too
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            if not len(container.streams):
                raise UserError(f"video {path}: truncated or broken (there is nothing in it); replace the file")
            what = "sound only" if container.streams.audio else "no pictures in it"
            raise UserError(f"video {path}: {what}; give a file with pictures")
        stream = streams[0]
        if stream.codec_context is None:
            raise UserError(f"video {path}: no decoder for its pictures here; convert it to H.264")
        _check_size(path, stream.codec_context.width, stream.codec_context.height, spec)
        yield container, stream
    except _BROKEN as error:
        raise UserError(f"video {path}: truncated or broken ({_said(error)}); replace the file") from error
    finally:
        container.close()


def _said(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0][:120]


def _check_size(path: str | Path, width: int, height: int, spec: Spec) -> None:
    if width < 1 or height < 1:
        raise UserError(f"video {path}: its frames have no pixels ({width} x {height}); replace the file")
    if max(width, height) > spec.max_side or width * height > spec.max_area:
        raise UserError(
            f"video {path}: frames of {width} x {height} pixels exceed the limit (sides {spec.max_side}, "
            f"{spec.max_area} pixels in all); make it smaller, or raise inputs.max_image_side and max_image_pixels"
        )


def _check_length(path: str | Path, seconds: float, spec: Spec) -> None:
    if spec.max_seconds is not None and seconds > spec.max_seconds:
        raise UserError(
            f"video {path}: {seconds:.1f} seconds are more than inputs.max_video_seconds {spec.max_seconds:g}; "
            "cut it, or raise the limit"
        )


def _declared(container: Any, stream: Any) -> float:
    """Seconds that the headers tell; 0 where they tell none."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return float(container.duration or 0) / av.time_base


def _length(container: Any, stream: Any, table: _Table) -> float:
    """From the first frame to the end of the last one."""
    if len(table.tick_n) > 1:
        return float(table.time_n[-1] + table.gap)
    return max(_declared(container, stream), 0.0)


def _table(container: Any, stream: Any, path: str | Path) -> _Table:
    """From the index of the container where that tells all, else from the time stamps of every packet."""
    unit: Fraction = stream.time_base
    entries = [(e.timestamp, e.is_keyframe, e.is_discard) for e in stream.index_entries]
    if stream.frames and len(entries) == stream.frames and entries[0][1] and not any(gone for _, _, gone in entries):
        # the index has the order of decoding; at a constant rate that is the order of showing, moved
        tick_n = np.array(sorted(t for t, _, _ in entries), dtype=np.int64)
        if constant_rate((tick_n * float(unit)).astype(np.float64)):
            shift = (stream.start_time if stream.start_time is not None else int(tick_n[0])) - int(tick_n[0])
            key_k = np.array(sorted(t for t, key, _ in entries if key), dtype=np.int64)
            return _Table(tick_n + shift, key_k + shift, unit)
    ticks: list[int] = []
    keys: list[int] = []
    end = 0.0
    for packet in container.demux():  # of all streams: sound may go on after the last frame
        tick = packet.pts if packet.pts is not None else packet.dts
        if not packet.size or tick is None:
            continue
        end = max(end, float((tick + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index and not packet.is_discard and _shows(packet, stream):
            ticks.append(tick)
            if packet.is_keyframe:
                keys.append(tick)
    if not ticks:
        raise UserError(f"video {path}: no frame with a time stamp in it; replace the file, or convert it to mp4")
    _check_end(path, container, end)
    # a file cut out of a longer one may start with frames that need what is gone: no decoder shows them
    shown = [tick for tick in ticks if tick >= keys[0]] if keys else ticks
    return _Table(np.unique(np.array(shown, dtype=np.int64)), np.unique(np.array(keys, dtype=np.int64)), unit)


def _shows(packet: Any, stream: Any) -> bool:
    """Whether a picture comes out of it: VP8 has packets that others refer to, which are never shown themselves."""
    return stream.codec_context.name not in ("vp8", "libvpx") or bool(memoryview(packet)[0] & 0x10)


def _check_end(path: str | Path, container: Any, end: float) -> None:
    """A Matroska or WebM file that was cut off is read without complaint up to there; its header tells how long it was.

    end   seconds at which the last packet of any stream ends.
    """
    if container.format.name != "matroska,webm" or not container.duration:
        return
    told = container.duration / av.time_base  # of which time before the first frame is a part
    if told - end > max(1.0, 0.05 * told):  # the last packet need not say how long it lasts
        raise UserError(
            f"video {path}: truncated or broken (it ends at {end:.2f} s, its header says {told:.2f} s); "
            "replace the file"
        )


def _choose(path: str | Path, table: _Table, seconds: float, spec: Spec) -> Ints:
    """Indices [n] of the wanted frames; they do not fall."""
    if spec.frames != "times":
        return evenly(table.time_n, frame_count(len(table.tick_n), seconds, spec))
    if spec.times[-1] > seconds + 1e-3:
        raise UserError(
            f"video {path}: time {spec.times[-1]:g} is wanted, but it ends after {seconds:.2f} seconds; "
            "mend meta `times`"
        )
    return on_screen(table.time_n, spec.times)


def _pictures(
    path: str | Path, table: _Table, index: Sequence[int], n: int, spec: Spec
) -> tuple[dict[int, Frames], tuple[int, int]]:
    """Wanted index -> frame [H, W, 3] resized as one of `n`, and (width, height) before that."""
    missed: _MissedError | None = None
    for wanted in (_reached, _counted):  # the second one decodes all that comes before, and serves every container
        found: dict[int, Frames] = {}
        size = (0, 0)
        try:
            with _open(path, spec) as (container, stream):
                for i, frame in wanted(container, stream, table, index):
                    _check_size(path, frame.width, frame.height, spec)  # a stream may change its size
                    picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                    size = size if found else (picture.shape[1], picture.shape[0])
                    found[i] = _resized(picture[None], _target(path, size, n, spec))[0]
            return found, size
        except _MissedError as error:
            missed = error
    raise UserError(f"video {path}: truncated or broken ({missed}); replace the file")


def _reached(container: Any, stream: Any, table: _Table, index: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """The wanted frames by their time stamps, each from the key frame before it."""
    slack = (int(np.diff(table.tick_n).min()) - 1) // 2 if len(table.tick_n) > 1 else 0
    if container.format.name not in _INDEXED:
        raise _MissedError("not looked for")
    first = int(table.tick_n[0])
    coming, last = container.decode(stream), first - 1
    for i in index:
        tick = int(table.tick_n[i])
        before = table.key_k[(table.key_k <= tick) & (table.key_k > max(last, first))]
        if len(before):
            container.seek(int(before[-1]), stream=stream, backward=True)
            coming = container.decode(stream)
        for frame in coming:
            last = frame.pts if frame.pts is not None else last
            if last >= tick - slack:
                break
        else:
            raise _MissedError(f"the frame at {table.time_n[i]:.2f} s is not in it")
        if (last > tick + slack and len(table.tick_n) > 1) or frame.is_corrupt:
            raise _MissedError(f"the frame at {table.time_n[i]:.2f} s is damaged")
        yield i, frame


def _counted(container: Any, stream: Any, table: _Table, index: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """The wanted frames by their number, from the start of the file: for time stamps that seeking does not obey."""
    wanted = iter(index)
    i = next(wanted)
    first = int(table.tick_n[0])
    shown = (frame for frame in container.decode(stream) if frame.pts is None or frame.pts >= first)
    for number, frame in enumerate(shown):
        if number == i:
            if frame.is_corrupt:
                break
            yield i, frame
            if (following := next(wanted, None)) is None:
                return
            i = following
    raise _MissedError(f"the frame at {table.time_n[i]:.2f} s is missing or damaged")


def _target(path: str | Path, size: tuple[int, int], n: int, spec: Spec) -> tuple[int, int]:
    """(height, width) of every frame: where the stream changes its size, that of the first."""
    try:
        return frame_size(size[1], size[0], n, spec)
    except ValueError as error:
        raise UserError(f"video {path}: {error}") from error


def _resized(frames_nhwc: Frames, target: tuple[int, int]) -> Frames:
    """Bicubic with antialiasing, as the processors of the models resize."""
    if frames_nhwc.shape[1:3] == target:
        return np.ascontiguousarray(frames_nhwc)
    import torch
    from torchvision.transforms.v2 import functional

    moved = torch.from_numpy(np.ascontiguousarray(frames_nhwc.transpose(0, 3, 1, 2)))
    mode = functional.InterpolationMode.BICUBIC
    done = functional.resize(moved, list(target), interpolation=mode, antialias=True)
    return np.ascontiguousarray(done.permute(0, 2, 3, 1).numpy())
