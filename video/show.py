"""What people see of a clip: some of its frames side by side."""

from __future__ import annotations

import numpy as np
from PIL import Image

from video.clips import Clip

FRAMES = 8  # of a strip, at most
SIDE = 160  # pixels of a frame's longer side, at most
GAP = 2


def strip(clip: Clip) -> Image.Image:
    """Frames spread evenly over the clip, first and last among them, from left to right on white."""
    n = min(FRAMES, len(clip))
    index = np.unique(np.round(np.linspace(0, len(clip) - 1, n)).astype(int))
    shown = [Image.fromarray(clip.frames_nhwc[i]) for i in index.tolist()]
    width, height = clip.shown_size
    scale = min(1.0, SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    sheet = Image.new("RGB", (len(shown) * (size[0] + GAP) - GAP, size[1]), "white")
    for i, frame in enumerate(shown):
        sheet.paste(frame.resize(size, Image.Resampling.BICUBIC) if scale < 1 else frame, (i * (size[0] + GAP), 0))
    return sheet
