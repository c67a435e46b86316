"""Pictures from outside as tensors: what imitation starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrl.data.images import open_image
from mmrl.errors import UserError


def pixels_of(picture: Any, *, height: int, width: int) -> Tensor:
    """A picture (PIL, a file, or a tensor) as [3, height, width] in [0, 1]. Raises UserError for another size."""
    pixels = picture if isinstance(picture, Tensor) else _opened(picture)
    if pixels.shape != (3, height, width):
        shape = f"{list(pixels.shape)}" if pixels.dim() != 3 else f"{pixels.shape[1]}x{pixels.shape[2]}"
        raise UserError(f"picture: the size is {shape}, the model is trained at {height}x{width}; resize it")
    return pixels


def _opened(picture: Any) -> Tensor:
    array = np.asarray(open_image(picture), dtype=np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)
