"""Latents packed in 2x2 patches to a sequence [N, L, 4 C], and noise levels shifted by its length."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from image_gen.pipelines.common import DiffusersModel, Level


class PackedModel(DiffusersModel):
    """FLUX.1 and Qwen-Image. The sequence runs over rows, then columns, of patches; L = (h / 2) (w / 2)."""

    def _multiple(self) -> int:
        return 2 * int(self.pipe.vae_scale_factor)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches: rows, columns."""
        return height // self._multiple(), width // self._multiple()

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        self.check_size(height, width)
        rows, columns = self._grid(height, width)
        return rows * columns, int(self.config.in_channels)

    def _timetable(self, steps: int, height: int, width: int) -> dict[str, Any]:
        rows, columns = self._grid(height, width)
        return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": self._mu(rows * columns, top=1.15)}

    def _unpacked(self, x_n: Tensor, *, height: int, width: int) -> Tensor:
        """[N, L, 4 C] -> [N, C, h, w]."""
        rows, columns = self._grid(height, width)
        x = x_n.unflatten(2, (-1, 2, 2)).unflatten(1, (rows, columns))  # N rows columns C 2 2
        return x.permute(0, 3, 1, 4, 2, 5).reshape(len(x_n), -1, 2 * rows, 2 * columns)

    def _packed(self, latent_n: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, L, 4 C]."""
        x = latent_n.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # N C rows 2 columns 2
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _thousandth(self, sigma: Level, x_n: Tensor) -> Tensor:
        """sigma as the pipelines hand it over: a timestep, rounded to the latents' dtype, over 1000."""
        return self._timestep(sigma, x_n).to(x_n.dtype) / 1000
