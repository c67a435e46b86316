"""A clip in memory. Axes: n frames, H x W pixels. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames that were read or drawn; a record's `videos` may hold one in place of a path.

    frames_nhwc   uint8 [n, H, W, 3].
    times_n       seconds from the start of the video at which each frame is shown, rising.
    seconds       length of the whole video.
    size          (width, height) of a frame before it was resized; None where it was not.
    """

    frames_nhwc: npt.NDArray[np.uint8]
    times_n: npt.NDArray[np.float64]
    seconds: float
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.frames_nhwc)

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) of its frames as they are here."""
        return int(self.frames_nhwc.shape[2]), int(self.frames_nhwc.shape[1])

    @property
    def seconds_per_frame(self) -> float:
        """Mean distance of neighbouring frames; the whole length for a single one."""
        if len(self) < 2:
            return self.seconds
        return float((self.times_n[-1] - self.times_n[0]) / (len(self) - 1))
