"""Qwen-Image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from image_gen.pipelines.base import Batch, Condition
from image_gen.pipelines.common import Level
from image_gen.pipelines.components import Reader
from image_gen.pipelines.packed import PackedModel
from image_gen.pipelines.sd3 import SD3
from mmrl.errors import UserError


class QwenImage(PackedModel):
    """Latents packed [N, L, 4 C]; the transformer takes sigma itself and prompts of different lengths with a mask.

    Guidance is the plain mix v_u + w (v_c - v_u), as Flow-GRPO trains it. The pipeline's `true_cfg_scale` also scales
    the mix, token by token, to the length of v_c: its pictures equal ours at w = 1 only.
    Source: arXiv 2508.02324. LoRA targets: attention and both feed-forward parts, our choice.
    """

    lora_targets = (*SD3.lora_targets, "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    _TOKENS = 512

    def __init__(self, pipe: Any, **options: Any) -> None:
        super().__init__(pipe, **options)
        if self.config.guidance_embeds:
            raise UserError(
                f"{self.source}: a Qwen-Image distilled with a guidance scale is not supported by diffusers"
            )

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        text, mask = self.pipe.encode_prompt(prompts, device=self.device, max_sequence_length=self._TOKENS)
        mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device) if mask is None else mask
        return {"encoder_hidden_states": text, "encoder_hidden_states_mask": mask}

    def _row(self, condition: Condition) -> Condition:
        """Without the padding of the prompts it was encoded with."""
        length = int(condition["encoder_hidden_states_mask"].sum())
        return super()._row({"encoder_hidden_states": condition["encoder_hidden_states"][:length]})

    def _readers(self) -> list[Reader]:
        limit = self._TOKENS + self.pipe.prompt_template_encode_start_idx
        return [(self.pipe.tokenizer, limit, self.pipe.prompt_template_encode)]

    def collate(self, conditions: Sequence[Condition]) -> Batch:
        """Padded with zeros; the mask is left out where nothing is padded, as the pipeline does."""
        texts = [c["encoder_hidden_states"].to(self.device) for c in conditions]
        batch = {"encoder_hidden_states": pad_sequence(texts, batch_first=True)}
        lengths = torch.tensor([len(text) for text in texts], device=self.device)
        place = torch.arange(batch["encoder_hidden_states"].shape[1], device=self.device)
        if len(lengths.unique()) > 1:
            batch["encoder_hidden_states_mask"] = place < lengths[:, None]
        return batch

    def _forward(
        self, x_n: Tensor, sigma: Level, batch: Mapping[str, Tensor], *, height: int, width: int, scale: float | None
    ) -> Tensor:
        answer: Tensor = self.transformer(
            hidden_states=x_n,
            timestep=self._thousandth(sigma, x_n),
            img_shapes=[[(1, *self._grid(height, width))]] * len(x_n),
            **batch,
            return_dict=False,
        )[0]
        return answer

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the decoder's channels, [C, 1, 1]."""
        config = self.pipe.vae.config
        mean, std = (torch.tensor(v).to(like)[:, None, None] for v in (config.latents_mean, config.latents_std))
        return mean, std

    def _unscaled(self, x_n: Tensor, *, height: int, width: int) -> Tensor:
        """[N, C, 1, h, w]: the decoder is one of videos."""
        mean, std = self._statistics(x_n)
        return (self._unpacked(x_n, height=height, width=width) * std + mean)[:, :, None]

    def _scaled(self, latent: Tensor) -> Tensor:
        mean, std = self._statistics(latent)
        return self._packed((latent[:, :, 0] - mean) / std)

    def _frames(self, picture_n: Tensor) -> Tensor:
        return picture_n[:, :, None]
