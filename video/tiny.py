"""Random video checkpoints of the Qwen-VL shapes, small enough for tests and CPU benchmarks, and clips to show them.

The checkpoints are those of `mmrl.vlm.tiny`, patches of 4 pixels merged 2 x 2: their video processors are the real
classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmrl.vlm.tiny import build as build
from video.clips import Clip

KINDS = ("qwen2_5_vl", "qwen3_vl")
#: Limits of `inputs` that leave the clips below as they are.
INPUTS: dict[str, Any] = {"frame_min_pixels": 8 * 8, "frame_max_pixels": 32 * 32}


def noise_clip(frames: int, height: int, width: int, *, seed: int = 0, fps: float = 2.0) -> Clip:
    """Frames of uniform noise, shown at 0, 1 / fps, ... seconds."""
    drawn = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return Clip(drawn, np.arange(frames) / fps, frames / fps)
