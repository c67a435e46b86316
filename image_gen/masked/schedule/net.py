"""Means of the raw actions from the canvas: a small network on features of the token model.

Axes: n rows, L = h * w positions, D features, V = 4 variables.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from image_gen.masked import config
from image_gen.masked.config import VARIABLES
from image_gen.masked.schedule.base import Schedule, needed_features


@dataclass(frozen=True)
class Widths:
    """Sizes of the network; the defaults are the published ones. `side`: of the grid that every canvas is brought to.
    `waves`: of the step embedding, even."""

    embed: int = 512
    channels: int = 128
    first: int = 1024
    second: int = 512
    side: int = 16
    waves: int = 256


class AdaLN(nn.Module):
    """Layer norm without its own scale; scale and shift come from a condition, and start as the identity."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(condition, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [..., width], condition [condition]: the same for all rows."""
        shift, scale = self.modulation(functional.silu(condition)).chunk(2, dim=-1)
        normed: Tensor = self.norm(x)
        modulated: Tensor = normed * (1 + scale) + shift
        return modulated


class StepEmbedding(nn.Module):
    """Sines and cosines of the share of steps done, (t + 1) / T in thousandths, and two layers. Any step count.

    AdaNAT embeds the step's number; the share makes one network serve every step count (ours)."""

    def __init__(self, width: int, waves: int) -> None:
        super().__init__()
        self.waves = waves
        self.inner, self.outer = nn.Linear(waves, width), nn.Linear(width, width)
        for layer in (self.inner, self.outer):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, share: float) -> Tensor:
        """[width]"""
        like, half = self.inner.weight, self.waves // 2
        rate = torch.arange(half, device=like.device, dtype=like.dtype) / half
        angle = 1000 * share * torch.exp(-math.log(10_000) * rate)
        inner = self.inner(torch.cat([angle.cos(), angle.sin()]))
        embedded: Tensor = self.outer(functional.silu(inner))
        return embedded


class NetSchedule(Schedule):
    """AdaNAT's policy network (arXiv 2409.00342). RECONSTRUCTION: Co-GRPO's own was not published.

    features [n, L, D] -> linear 512 -> AdaLN with the step embedding -> 16x16 grid -> 3x3 depth-wise convolution,
    stride 2 -> GELU -> 1x1 convolution to 128 -> GELU -> linear 1024 -> AdaLN -> GELU -> linear 512 -> AdaLN -> GELU
    -> linear 4, zero at the start: the hand-made schedule. Features of a canvas that is not 16x16 are brought to 16x16
    by adaptive average pooling first (ours). In the dtype of its weights, also under autocast. Detached: features.

    feature_width   D.
    grid            (h, w) of the canvas; the weights do not depend on it, and it may be set anew.
    """

    reads_features = True

    def __init__(
        self,
        options: config.Schedule,
        *,
        steps: int,
        feature_width: int,
        grid: tuple[int, int],
        widths: Widths | None = None,
    ) -> None:
        super().__init__(options, steps=steps)
        w = widths or Widths()
        self.feature_width, self.grid, self.widths = feature_width, grid, w
        self.step_embedding = StepEmbedding(w.embed, w.waves)
        self.embed, self.norm_embed = nn.Linear(feature_width, w.embed), AdaLN(w.embed, w.embed)
        self.spatial = nn.Conv2d(w.embed, w.embed, 3, stride=2, padding=1, groups=w.embed)
        self.mix = nn.Conv2d(w.embed, w.channels, 1)
        cells = ((w.side + 1) // 2) ** 2
        self.first, self.norm_first = nn.Linear(cells * w.channels, w.first), AdaLN(w.first, w.embed)
        self.second, self.norm_second = nn.Linear(w.first, w.second), AdaLN(w.second, w.embed)
        self.head = nn.Linear(w.second, len(VARIABLES))
        for layer in (self.embed, self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def _mean(self, *, step: int, steps: int, n: int, features_nld: Tensor | None) -> Tensor:
        features_nld = needed_features(features_nld).to(self.head.weight.dtype)
        expected = (n, self.grid[0] * self.grid[1], self.feature_width)
        if features_nld.shape != expected:
            raise ValueError(f"features must be {list(expected)} for grid {self.grid}; got {list(features_nld.shape)}")
        with torch.autocast(features_nld.device.type, enabled=False):  # rollout and update must agree
            return self._forward(features_nld, (step + 1) / steps)

    def _forward(self, features_nld: Tensor, share: float) -> Tensor:
        side, condition = self.widths.side, self.step_embedding(share)
        x = self.norm_embed(self.embed(self._pooled(features_nld)), condition)
        x = x.transpose(1, 2).unflatten(2, (side, side))
        x = functional.gelu(self.mix(functional.gelu(self.spatial(x)))).flatten(1)
        x = functional.gelu(self.norm_first(self.first(x), condition))
        x = functional.gelu(self.norm_second(self.second(x), condition))
        mean_nv: Tensor = self.head(x)
        return mean_nv

    def _pooled(self, features_nld: Tensor) -> Tensor:
        """[n, side * side, D]"""
        side = self.widths.side
        if self.grid == (side, side):
            return features_nld
        plane = features_nld.transpose(1, 2).reshape(-1, self.feature_width, *self.grid)
        return functional.adaptive_avg_pool2d(plane, side).flatten(2).transpose(1, 2)

    @property
    def at_base(self) -> bool:
        return not bool(self.head.weight[self.learned_v].any() or self.head.bias[self.learned_v].any())

    def shape_note(self) -> dict[str, Any]:
        return {"feature_width": self.feature_width, "grid": list(self.grid), "widths": asdict(self.widths)}
