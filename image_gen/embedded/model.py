"""The embedded image model: a small SD3 transformer on grey pixels, with its own word encoder. No VAE.

Latents are the pixels themselves, [1, H, W], -1 paper to 1 ink. One cell (8 x 8) or the wide canvas (8 x 24).
`scripts/make_flow_start.py` makes the weights; docs/embedded_flow.md says how.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_gen.embedded.canvas import CELLS, SIDE
from image_gen.embedded.told import FOLDER, ToldModel, load_parts
from image_gen.embedded.words import WIDTH
from image_gen.flow.sigmas import sigma_table
from image_gen.pipelines.base import ImageModel, levels
from image_gen.pipelines.pixels import pixels_of
from image_gen.pipelines.sd3 import SD3
from mmrl.errors import UserError

#: The two shipped starts: the second was trained for longer, since composition is learned later than single digits.
NAMES = {"embedded:flow": "flow", "embedded:compose": "compose"}
NAME = "embedded:flow"
CLASS = "EmbeddedDigits"
SIZES = ((SIDE, SIDE), (SIDE, SIDE * CELLS))
#: Of the table of noise levels; latents this small need no more.
SHIFT = 1.0
#: The scheduler's units: what diffusers calls a timestep is 1000 sigma.
TRAIN_STEPS = 1000


def make_transformer() -> Any:
    """Random weights of the shipped shape, by diffusers' own class."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=SIDE * CELLS,
        patch_size=2,
        in_channels=1,
        out_channels=1,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=64,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=SIDE * CELLS // 2,
    )


class EmbeddedDigits(ToldModel, ImageModel):
    """Prompts of `image_gen.embedded.prompts`; guidance mixes with the empty prompt, which was trained as well."""

    class_name = CLASS
    lora_targets = SD3.lora_targets

    # sampling

    def check_size(self, height: int, width: int) -> None:
        if (height, width) not in SIZES:
            known = " or ".join(f"{h}x{w}" for h, w in SIZES)
            raise UserError(
                f"picture size {height}x{width}: the embedded model draws {known}; set inputs.height and inputs.width "
                "(generate: --height, --width)"
            )

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        self.check_size(height, width)
        return 1, height, width

    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        return sigma_table(steps=steps, shift=SHIFT, train_steps=TRAIN_STEPS)

    def velocity(
        self,
        x_n: Tensor,
        sigma: float | Tensor,
        batch: Mapping[str, Tensor],
        *,
        height: int,
        width: int,
        scale: float | None,
    ) -> Tensor:
        if scale is not None:
            raise ValueError("guidance classifier_free: scale must be None")
        timestep_n = TRAIN_STEPS * levels(sigma, x_n.float())
        answer: Tensor = self.transformer(
            hidden_states=x_n.to(self.transformer.dtype), timestep=timestep_n, **batch, return_dict=False
        )[0]
        return answer.to(x_n.dtype)

    def from_picture(self, picture: Any, *, height: int, width: int) -> Tensor:
        """The grey of its channels. Raises UserError for another size."""
        self.check_size(height, width)
        pixels = pixels_of(picture, height=height, width=width)
        return 2 * pixels.float().mean(0, keepdim=True).cpu() - 1

    @torch.no_grad()
    def decode(self, x_n: Tensor, *, height: int, width: int) -> Tensor:
        """NaN becomes 0; count non-finite latents before."""
        grey_n = (x_n.float() / 2 + 0.5).clamp(0, 1).nan_to_num(nan=0.0)
        return grey_n.expand(-1, 3, -1, -1).contiguous()


def load(name: str | Path = NAME, *, dtype: torch.dtype, device: torch.device) -> EmbeddedDigits:
    """A name of NAMES, or a folder that `EmbeddedDigits.save` wrote; eval mode, on its device.

    dtype: of the transformer; the words stay float32. Raises UserError: no such folder, damaged files, weights of
    another shape or vocabulary.
    """
    from diffusers import SD3Transformer2DModel

    folder = FOLDER / NAMES[str(name)] if str(name) in NAMES else Path(name).expanduser()
    transformer, words = load_parts(
        folder,
        asked=str(name),
        class_name=CLASS,
        example=NAME,
        transformer_class=SD3Transformer2DModel,
        dtype=dtype,
    )
    return EmbeddedDigits(transformer.to(device).eval(), words.to(device).eval())


def load_compose(*, dtype: torch.dtype, device: torch.device) -> EmbeddedDigits:
    """`embedded:compose`."""
    return load("embedded:compose", dtype=dtype, device=device)
