"""The embedded masked model: a compact token transformer on grey levels, told by words. No codebook of pictures: a
token is the grey level of a pixel.

A canvas has 8 x 8 tokens, 0 paper to 16 ink. `scripts/make_masked_start.py` makes the weights; docs/embedded_masked.md
says how.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_gen.embedded.canvas import SIDE
from image_gen.embedded.told import FOLDER, ToldModel, load_parts, load_scheduler
from image_gen.embedded.words import WIDTH, WordEncoder
from image_gen.masked.models.base import Predicted, TokenModel
from image_gen.pipelines.pixels import pixels_of
from mmrl.data.digits import LEVELS
from mmrl.errors import UserError

NAME = "embedded:masked"
CLASS = "EmbeddedTokens"
#: The id of an open position; ids above it fill the vocabulary up and stand for nothing.
MASK = LEVELS
VOCABULARY = 20
TOKEN_WIDTH = 32


def make_transformer() -> Any:
    """Random weights of the shipped shape."""
    from image_gen.masked.models.compact import CompactTokens

    return CompactTokens(vocabulary=VOCABULARY, side=SIDE, words_width=WIDTH, token_width=TOKEN_WIDTH)


def make_scheduler() -> Any:
    """diffusers' scheduler of masked models: cosine."""
    from diffusers import AmusedScheduler

    return AmusedScheduler(mask_token_id=MASK)


class EmbeddedTokens(ToldModel, TokenModel):
    """One cell of 8 x 8 pixels for the prompts "a zero" .. "a nine"."""

    class_name = CLASS
    lora_targets = ("to_qkv", "to_out", "up", "down")
    codebook = LEVELS
    mask_id = MASK
    feature_width = TOKEN_WIDTH
    guidance = 1.0

    def __init__(self, transformer: Any, words: WordEncoder, scheduler: Any = None) -> None:
        super().__init__(transformer, words)
        self.scheduler = make_scheduler() if scheduler is None else scheduler

    def check_size(self, height: int, width: int) -> None:
        if (height, width) != (SIDE, SIDE):
            raise UserError(
                f"picture size {height}x{width}: the embedded model draws {SIDE}x{SIDE}; set inputs.height and "
                "inputs.width (generate: --height, --width)"
            )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        self.check_size(height, width)
        return height, width

    def predict(
        self, ids_nl: Tensor, batch: Mapping[str, Tensor], *, height: int, width: int, features: bool = False
    ) -> Predicted:
        logits_nlv, features_nld = self.transformer(
            ids_nl.unflatten(1, self.grid(height, width)),
            batch["encoder_hidden_states"],
            batch["pooled_projections"],
        )
        return Predicted(logits_nlv[..., : self.codebook], features_nld if features else None)

    @torch.no_grad()
    def decode(self, ids_nl: Tensor, *, height: int, width: int) -> Tensor:
        """Raises ValueError for an id that is no grey level: an open position has no picture."""
        if bool(((ids_nl < 0) | (ids_nl >= self.codebook)).any()):
            raise ValueError(f"ids 0 to {self.codebook - 1} are grey levels; the canvas is not whole")
        grey_nhw = ids_nl.unflatten(1, self.grid(height, width)).float() / (LEVELS - 1)
        return grey_nhw[:, None].expand(-1, 3, -1, -1).contiguous()

    def tokenise(self, picture: Any, *, height: int, width: int) -> Tensor:
        """The grey of its channels, rounded to a level. Raises UserError for another size."""
        self.check_size(height, width)
        pixels = pixels_of(picture, height=height, width=width)
        grey_l = pixels.float().mean(0).flatten().cpu()
        return (grey_l * (LEVELS - 1)).round().clamp(0, LEVELS - 1).long()

    def save(self, path: Path, *, max_shard_size: str = "10GB") -> None:
        """As `ToldModel.save`, and `scheduler/`."""
        super().save(path, max_shard_size=max_shard_size)
        self.scheduler.save_pretrained(path / "scheduler")


def load(name: str | Path = NAME, *, dtype: torch.dtype, device: torch.device) -> EmbeddedTokens:
    """`embedded:masked`, or a folder that `EmbeddedTokens.save` wrote; eval mode, on its device.

    dtype: of the transformer; the words stay float32. Raises UserError: no such folder, damaged files, weights of
    another shape or vocabulary.
    """
    from diffusers import AmusedScheduler

    from image_gen.masked.models.compact import CompactTokens

    folder = FOLDER / "masked" if str(name) == NAME else Path(name).expanduser()
    transformer, words = load_parts(
        folder, asked=str(name), class_name=CLASS, example=NAME, transformer_class=CompactTokens, dtype=dtype
    )
    scheduler = load_scheduler(folder, asked=str(name), scheduler_class=AmusedScheduler)
    return EmbeddedTokens(transformer.to(device).eval(), words.to(device).eval(), scheduler)
