"""The sections of a run's configuration that belong to video-language models. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mmrl.vlm.config import SAMPLES_A_DEMONSTRATION as SAMPLES_A_DEMONSTRATION
from mmrl.vlm.config import Inputs as PictureInputs
from mmrl.vlm.config import Model as Model
from mmrl.vlm.config import Sampling as Sampling
from mmrl.vlm.embedded_models import EMBEDDED
from video.memory import describe as memory_lines  # noqa: F401  (the estimate of --dry-run)

EMBEDDED["embedded:video"] = Path(__file__).parent / "embedded" / "start"


class Inputs(PictureInputs):
    """Which frames of a video the model sees, and how large."""

    frames: Literal["fps", "count", "times"] = Field(
        "fps", description="fps: so many a second; count: n evenly; times: those of the record's meta `times` (seconds)"
    )
    fps: float = Field(2.0, gt=0, le=240)
    count: int = Field(16, ge=1, le=4096)
    min_frames: int = Field(4, ge=1, le=4096)
    max_frames: int = Field(16, ge=1, le=4096)
    even_frames: bool = Field(True, description="an even number: two frames become one position in time")
    frame_min_pixels: int = Field(128 * 28 * 28, ge=1, description="of one frame, after resizing")
    frame_max_pixels: int = Field(196 * 28 * 28, ge=1)
    video_max_pixels: int | None = Field(None, ge=1, description="of all frames of a video together")
    max_video_seconds: float | None = Field(None, gt=0, description="longer files are refused before they are decoded")
    read_ahead: bool = Field(True, description="read and encode the next step's clips beside the update")
    cached_clips: int = Field(64, ge=0, description="decoded clips that are kept, newest first; 0 = none")

    @model_validator(mode="after")
    def _limits_in_order(self) -> Inputs:
        if self.min_frames > self.max_frames:
            raise ValueError(f"min_frames: {self.min_frames} is more than max_frames {self.max_frames}")
        if self.frame_min_pixels > self.frame_max_pixels:
            raise ValueError(
                f"frame_min_pixels: {self.frame_min_pixels} is more than frame_max_pixels {self.frame_max_pixels}"
            )
        return self
