"""What the masked policy asks of a model beyond `PictureModel`: canvases of token ids to logits, ids to pictures.

Axes: N images, L = h * w tokens of a canvas (row by row), K ids of the codebook, D features. Ids are int64; the mask id
is not in the codebook.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from image_gen.pipelines.base import PictureModel
from mmrl.errors import UserError


@dataclass(frozen=True)
class Predicted:
    """One forward.

    logits_nlk    [N, L, K]: ids beyond the codebook (mask, padding of the vocabulary) are cut off, never sampled.
    features_nld  [N, L, D] of the last layer before the head, where asked for.
    """

    logits_nlk: Tensor
    features_nld: Tensor | None = None


class TokenModel(PictureModel):
    """A predictor of masked tokens with its decoder of pictures.

    codebook       K, ids that stand for something: 0 .. K-1.
    mask_id        the id of an open position, at least K.
    feature_width  D.
    guidance       the scale that the model's own sampler takes by default.
    scheduler      diffusers' AmusedScheduler of the model: its mask schedule is the hand-made one.
    """

    codebook: int
    mask_id: int
    feature_width: int
    guidance: float
    scheduler: Any

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the canvas for pictures of that size. Raises UserError for one that it cannot draw."""

    @abstractmethod
    def predict(
        self, ids_nl: Tensor, batch: Mapping[str, Tensor], *, height: int, width: int, features: bool = False
    ) -> Predicted:
        """One forward of the transformer under one condition a row. Gradient to its trainable parameters."""

    @abstractmethod
    def decode(self, ids_nl: Tensor, *, height: int, width: int) -> Tensor:
        """Whole canvases to pictures, float32 [N, 3, height, width] in [0, 1], no gradient. The caller slices."""

    def tokenise(self, picture: Any, *, height: int, width: int) -> Tensor:
        """Ids [L] of a picture (PIL, a file, or a tensor [3, H, W] in [0, 1]) of that size, on the CPU: what imitation
        starts from."""
        raise UserError(f"recipe sft: {type(self).__name__} cannot turn pictures into tokens; use another recipe")
