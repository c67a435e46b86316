"""A record with videos becomes a prompt: frames, their moments in time, the model's own placeholders and positions.

Axes: n frames of a clip, P prompt positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError
from mmrl.vlm.adapters import Shape
from mmrl.vlm.encode import Encoder, Prompt
from video.clips import Clip
from video.config import Inputs
from video.frames import specs_of
from video.reading import Clips


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on the frames, one draw a pixel and colour: `sd` in pixel values of 0..255."""

    sd: float
    seed: int


@dataclass(eq=False)
class VideoPrompt(Prompt):
    """clips   of each video {"seconds", "times", "size", "model_size"}: its length, the moments of its frames, (width,
    height) of a frame before and after resizing."""

    clips: list[dict[str, Any]] = field(default_factory=list)


class VideoEncoder(Encoder):
    """Turns records with videos, pictures or both into prompts; a clip is read once while it is among the newest."""

    MEDIA = (*Encoder.MEDIA, "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
    SHORTER = "inputs.max_frames (or count), frame_max_pixels or max_pixels"
    inputs: Inputs

    def __init__(self, processor: Any, shape: Shape, inputs: Inputs) -> None:
        super().__init__(processor, shape, inputs)
        if getattr(processor, "video_processor", None) is None:
            raise UserError("model.path: its processor has no video processor; copy the original's preprocessor files")
        self.video = processor.video_processor
        self.clips = Clips(inputs.cached_clips)
        self.ready: dict[int, tuple[Record, Prompt]] = {}

    def __call__(self, record: Record, edit: str | None = None, *, noise: Noise | None = None) -> Prompt:
        def make() -> Prompt:
            if edit is None and noise is None and id(record) in self.ready:
                return self.ready.pop(id(record))[1]  # which holds the record: its id is still its own
            clips = [noisy(clip, noise, number) for number, clip in enumerate(self.clips_of(record))]
            return self._with_clips(record, edit, clips) if clips else self._prompt(record, edit, {})

        return self._once(record, (edit, noise), make)

    def get_ready(self, records: Sequence[Record]) -> None:
        """Makes the prompts of records that will probably be asked for next; those made before are forgotten. A record
        that cannot be used is left out: it raises where it is really asked for."""
        self.ready = {}
        for record in records:
            with suppress(RecordError):
                self.ready[id(record)] = (record, self._with_clips(record, None, self.clips_of(record)))

    def clips_of(self, record: Record) -> list[Clip]:
        """The record's videos, frames chosen and resized. Raises RecordError for one that cannot be used."""
        if not record.videos:
            return []
        specs = specs_of(record, self.inputs, factor=int(self.video.patch_size * self.video.merge_size))
        try:
            return [self.clips(source, spec) for source, spec in zip(record.videos, specs, strict=True)]
        except UserError as error:
            raise RecordError(record.id, str(error)) from error

    def _with_clips(self, record: Record, edit: str | None, clips: list[Clip]) -> VideoPrompt:
        further = {
            "videos": [clip.frames_nhwc for clip in clips],
            "videos_kwargs": {
                "video_metadata": [self._metadata(clip) for clip in clips],
                "do_sample_frames": False,
                "do_resize": False,  # done: the limits are those of `inputs`, whatever the processor's own
                "input_data_format": "channels_last",
                **({"cap_pixels_per_frame": False} if hasattr(self.video, "cap_pixels_per_frame") else {}),
            },
        }
        prompt = self._prompt(record, edit, further)
        sizes = [(clip.size or clip.shown_size, clip.shown_size) for clip in clips]
        told = [
            {"seconds": clip.seconds, "times": clip.times_n.tolist(), "size": list(size), "model_size": list(seen)}
            for clip, (size, seen) in zip(clips, sizes, strict=True)
        ]
        whole = dict(vars(prompt)) | {"sizes": [*prompt.sizes, *sizes]}
        return VideoPrompt(**whole, clips=told)

    def _metadata(self, clip: Clip) -> Any:
        """At one frame a second the indices of frames are their times, and the processors make of them what they make
        of a file: the text of a time stamp is the mean of its two frames (Qwen3-VL), and the seconds between positions
        are the length over the frames (Qwen2.5-VL), for frames at chosen times their mean distance."""
        from transformers.video_utils import VideoMetadata

        whole = clip.seconds_per_frame * len(clip) if self.inputs.frames == "times" else clip.seconds
        return VideoMetadata(
            total_num_frames=max(whole, 1e-3),
            fps=1.0,
            duration=clip.seconds,
            frames_indices=clip.times_n.tolist(),
        )


def noisy(clip: Clip, noise: Noise | None, number: int = 0) -> Clip:
    """The clip with rounded Gaussian noise on every value, kept inside 0..255; `number` tells the record's videos
    apart. The same noise gives the same frames."""
    if noise is None or noise.sd == 0:
        return clip
    drawn = np.random.default_rng([noise.seed, number]).standard_normal(clip.frames_nhwc.shape, dtype=np.float32)
    frames = np.clip(np.rint(clip.frames_nhwc + np.float32(noise.sd) * drawn), 0, 255).astype(np.uint8)
    return Clip(frames, clip.times_n, clip.seconds, clip.size)


def grids(prompt: Prompt) -> torch.Tensor:
    """int64 [clips, 3] of a prompt: positions in time, rows and columns of patches; empty without clips."""
    return prompt.media.get("video_grid_thw", torch.zeros(0, 3, dtype=torch.long))
