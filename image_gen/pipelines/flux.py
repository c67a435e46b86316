"""FLUX.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from image_gen.pipelines.common import Level
from image_gen.pipelines.components import Reader
from image_gen.pipelines.packed import PackedModel
from image_gen.pipelines.sd3 import SD3


class Flux(PackedModel):
    """Latents packed [N, L, 4 C]; the transformer takes sigma itself, positions of text (0) and patches, and, when it
    was distilled with one (FLUX.1-dev), the guidance scale.

    guidance is `embedded` for such a transformer; for one without (FLUX.1-schnell) it is `classifier_free`: scale 1 is
    one forward, any other is the pipeline's `true_cfg_scale`. LoRA targets of Flow-GRPO (arXiv 2505.05470).
    """

    lora_targets = (*SD3.lora_targets, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
    _T5_TOKENS = 512

    def __init__(self, pipe: Any, **options: Any) -> None:
        super().__init__(pipe, **options)
        self.guidance = "embedded" if self.config.guidance_embeds else "classifier_free"

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        text, pooled, _ = self.pipe.encode_prompt(prompts, device=self.device, max_sequence_length=self._T5_TOKENS)
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def _readers(self) -> list[Reader]:
        clip = (self.pipe.tokenizer, self.pipe.tokenizer_max_length, "{}")
        return [clip, (self.pipe.tokenizer_2, self._T5_TOKENS, "{}")]

    def _places(self, height: int, width: int, like: Tensor) -> Tensor:
        """Row and column of every patch; [L, 3], the first of the three is 0."""
        rows, columns = self._grid(height, width)
        places = torch.zeros(rows, columns, 3)
        places[..., 1] = torch.arange(rows)[:, None]
        places[..., 2] = torch.arange(columns)
        return places.reshape(-1, 3).to(like)

    def _forward(
        self, x_n: Tensor, sigma: Level, batch: Mapping[str, Tensor], *, height: int, width: int, scale: float | None
    ) -> Tensor:
        text = batch["encoder_hidden_states"]
        answer: Tensor = self.transformer(
            hidden_states=x_n,
            timestep=self._thousandth(sigma, x_n),
            guidance=None if scale is None else torch.full((len(x_n),), scale, device=x_n.device),
            txt_ids=torch.zeros(text.shape[1], 3).to(x_n),
            img_ids=self._places(height, width, x_n),
            **batch,
            return_dict=False,
        )[0]
        return answer

    def _unscaled(self, x_n: Tensor, *, height: int, width: int) -> Tensor:
        return super()._unscaled(self._unpacked(x_n, height=height, width=width), height=height, width=width)

    def _scaled(self, latent: Tensor) -> Tensor:
        return self._packed(super()._scaled(latent))
