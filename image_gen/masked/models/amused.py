"""aMUSEd (arXiv 2401.01808) in the folder layout of diffusers: UVit2DModel on tokens of a VQModel, told by CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from image_gen.masked.models.base import Predicted, TokenModel
from image_gen.pipelines.components import ComponentsModel, Reader, first_dtype
from image_gen.pipelines.pixels import pixels_of

#: Micro-conditioning after the size: where a training picture was cropped, and how well it was liked.
CROP, AESTHETIC = (0, 0), 6


class Parts(SimpleNamespace):
    """transformer, vqvae, text_encoder, tokenizer, scheduler, under the names of their folders."""

    @property
    def components(self) -> dict[str, Any]:
        return vars(self)


class Amused(ComponentsModel, TokenModel):
    """UVit2DModel takes canvases [N, h, w], so L = h * w runs row by row. The scale of the published sampler is 10.

    Features are what enters the head (`mlm_layer`), [N, L, D] with D = block_out_channels: where the network halves the
    grid (aMUSEd-512), its transformer layers have a quarter of the positions, and only behind the last block, which
    doubles the grid again, each token has a vector of its own.

    A LoRA is stored as for other image models. diffusers' AmusedPipeline has no `load_lora_weights`; there it is loaded
    by `pipe.transformer.load_lora_adapter(folder, weight_name="pytorch_lora_weights.safetensors")`.
    """

    # all attention, of the convolutional blocks at both ends as well, and the feed-forward layers between them
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    guidance = 10.0

    def __init__(self, parts: Parts, *, source: Path, device: torch.device) -> None:
        super().__init__(parts, source=source, device=device, layout="AmusedPipeline")
        self.scheduler = parts.scheduler
        self.codebook = int(self.config.codebook_size)
        self.mask_id = int(parts.scheduler.config.mask_token_id)
        self.feature_width = int(self.config.block_out_channels)
        self.reads = min(parts.tokenizer.model_max_length, parts.text_encoder.config.max_position_embeddings)
        vq = parts.vqvae.config
        self._factor = 2 ** (len(vq.block_out_channels) - 1)
        self._entry_width = int(vq.vq_embed_dim or vq.latent_channels)

    # prompts

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        ids = self.pipe.tokenizer(
            prompts, return_tensors="pt", padding="max_length", truncation=True, max_length=self.reads
        ).input_ids
        told = self.pipe.text_encoder(ids.to(self.device), return_dict=True, output_hidden_states=True)
        return {"encoder_hidden_states": told.hidden_states[-2], "pooled_text_emb": told.text_embeds}

    def _readers(self) -> list[Reader]:
        return [(self.pipe.tokenizer, self.reads, "{}")]

    # sizes

    def _multiple(self) -> int:
        return self._factor * (2 if self.config.downsample else 1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        self.check_size(height, width)
        return height // self._factor, width // self._factor

    # tokens

    def predict(
        self, ids_nl: Tensor, batch: Mapping[str, Tensor], *, height: int, width: int, features: bool = False
    ) -> Predicted:
        """Logits in the dtype that the transformer answers in. Ids may be on any device."""
        canvas_nhw = ids_nl.to(self.device).view(len(ids_nl), *self.grid(height, width))
        # width before height, as the model was trained
        micro = torch.tensor([width, height, *CROP, AESTHETIC], dtype=torch.float32, device=self.device)
        seen: list[Tensor] = []
        hook = self.transformer.mlm_layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            logits_nkhw = self.transformer(canvas_nhw, micro_conds=micro.expand(len(ids_nl), -1), **batch)
        finally:
            hook.remove()
        logits_nlk = _sequence(logits_nkhw)[..., : self.codebook]
        return Predicted(logits_nlk, _sequence(seen[0]) if features else None)

    @torch.no_grad()
    def decode(self, ids_nl: Tensor, *, height: int, width: int) -> Tensor:
        """NaN in the decoder's answer becomes 0. Raises ValueError for ids beyond the codebook, an open position
        among them."""
        if len(ids_nl) and not 0 <= int(ids_nl.min()) <= int(ids_nl.max()) < self.codebook:
            raise ValueError(f"decode: ids must be within 0 .. {self.codebook - 1}; is a position still open?")
        shape = (len(ids_nl), *self.grid(height, width), self._entry_width)
        decoded = self.pipe.vqvae.decode(ids_nl.to(self.device), force_not_quantize=True, shape=shape)
        picture_n: Tensor = decoded.sample.float()
        return picture_n.clip(0, 1).nan_to_num(nan=0.0)

    @torch.no_grad()
    def tokenise(self, picture: Any, *, height: int, width: int) -> Tensor:
        """The nearest entries of the codebook; int64 [L] on the CPU."""
        self.check_size(height, width)
        vq = self.pipe.vqvae
        pixels = pixels_of(picture, height=height, width=width).to(self.device, first_dtype(vq))
        _, _, (_, _, ids) = vq.quantize(vq.encode(pixels[None]).latents)
        return torch.as_tensor(ids).reshape(-1).cpu()

    # training

    def checkpoint_gradients(self, *, on: bool = True) -> None:
        """diffusers' own switch fails for this class (its layers are called with keywords that the wrapper does not
        take, https://github.com/huggingface/diffusers/issues/11214): the blocks' forwards are wrapped here."""
        for block in self._blocks():
            if on:
                block.forward = MethodType(_recomputed, block)  # a method, so that a copy calls its own
            else:
                vars(block).pop("forward", None)

    def _blocks(self) -> list[Any]:
        net = self.transformer
        ends = (net.down_block, net.up_block)
        return [*net.transformer_layers, *(b for end in ends for b in (*end.res_blocks, *end.attention_blocks))]


def _sequence(x_nchw: Tensor) -> Tensor:
    """[N, C, h, w] to [N, L, C]."""
    return x_nchw.flatten(2).transpose(1, 2)


def _recomputed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a block that keeps its inputs only, while gradients are recorded."""
    forward = type(block).forward.__get__(block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
