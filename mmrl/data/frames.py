"""Coordinate frames of boxes, converted in this one place. Loads no torch.

norm1000            0..1000 per axis (Qwen2-VL, Qwen3-VL)      norm1   0..1 per axis
pixel_original      pixels of the picture as it was stored
pixel_model_input   pixels of the picture as the model sees it (Qwen2.5-VL: sides rounded to multiples of 28)
"""

from __future__ import annotations

from typing import Literal

from mmrl.data.boxtext import Box
from mmrl.data.records import FRAMES
from mmrl.errors import UserError, nearest

Frame = Literal["norm1000", "norm1", "pixel_original", "pixel_model_input"]
Size = tuple[float, float]  # width, height


def check_frame(name: str, where: str) -> None:
    """Raises UserError with the nearest valid frame."""
    if name not in FRAMES:
        raise UserError(f"{where}: unknown frame {name!r}{nearest(name, FRAMES)}")


def extent(frame: str, *, original_size: Size | None, model_size: Size | None, where: str = "frame") -> Size:
    """Largest (x, y) a box may have in the frame. Raises UserError when the size it needs is missing."""
    check_frame(frame, where)
    if frame == "norm1000":
        return 1000.0, 1000.0
    if frame == "norm1":
        return 1.0, 1.0
    name, size = ("original_size", original_size) if frame == "pixel_original" else ("model_size", model_size)
    if size is None:
        raise UserError(f"{where}: frame {frame} needs {name} (width, height)")
    if not (size[0] > 0 and size[1] > 0):
        raise UserError(f"{where}: {name} must be positive, got {size}")
    return size


def convert_box(
    box: Box,
    from_frame: str,
    to_frame: str,
    *,
    original_size: Size | None = None,
    model_size: Size | None = None,
    where: str = "frame",
) -> Box:
    """The same box in another frame, not rounded. Sizes are (width, height) and needed for the pixel frames only."""
    check_frame(from_frame, where)
    check_frame(to_frame, where)
    if from_frame == to_frame:
        return box
    w_from, h_from = extent(from_frame, original_size=original_size, model_size=model_size, where=where)
    w_to, h_to = extent(to_frame, original_size=original_size, model_size=model_size, where=where)
    x, y = w_to / w_from, h_to / h_from
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y
