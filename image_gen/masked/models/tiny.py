"""Tiny checkpoints in aMUSEd's layout with random weights: real classes, real file formats, seconds to use.

A folder written here loads through `image_gen.masked.models.loading`, component by component in plain diffusers, and in
`AmusedPipeline` as long as diffusers has it. For tests and dry runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from image_gen.pipelines import tiny_text as text
from image_gen.pipelines.quiet import quiet

#: Ids of the codebook, and ids that the network embeds: the mask is the last of them, the rest between is padding.
CODEBOOK, VOCABULARY = 8, 32
MASK = VOCABULARY - 1
_WIDTH = 8


def transformer(*, half: bool = True) -> Any:
    """UVit2DModel of 5,152 parameters; `half`: its layers see every second row and column, as in aMUSEd-512."""
    from diffusers import UVit2DModel

    return UVit2DModel(
        hidden_size=_WIDTH,
        cond_embed_dim=_WIDTH,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=_WIDTH,
        vocab_size=VOCABULARY,
        codebook_size=CODEBOOK,
        in_channels=_WIDTH,
        block_out_channels=_WIDTH,
        num_res_blocks=1,
        downsample=half,
        upsample=half,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=_WIDTH,
        sample_size=4,
    )


def vqvae(*, levels: int = 1) -> Any:
    """VQModel; a token stands for a square of 2 ** (levels - 1) pixels a side."""
    from diffusers import VQModel

    return VQModel(
        block_out_channels=(_WIDTH,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=_WIDTH,
        norm_num_groups=_WIDTH,
        num_vq_embeddings=CODEBOOK,
        sample_size=8,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )


def write(folder: Path, *, seed: int = 0, half: bool = True, levels: int = 1) -> Path:
    """The folder of a tiny model with random float32 weights of `seed`.

    Layers that such models start at zero get random weights too, and the codebook spreads, so that every block, the
    prompt and every id matter. The global random state is left as it was.
    """
    from diffusers import AmusedScheduler

    tokenizer = text.clip_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {
            "transformer": transformer(half=half),
            "vqvae": vqvae(levels=levels),
            "text_encoder": text.clip_encoder(tokenizer, width=_WIDTH, projection=True),
        }
        _spread(parts)
    parts |= {"tokenizer": tokenizer, "scheduler": AmusedScheduler(mask_token_id=MASK)}
    with quiet():
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    index = {
        "_class_name": "AmusedPipeline",
        "scheduler": ["diffusers", "AmusedScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "UVit2DModel"],
        "vqvae": ["diffusers", "VQModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return folder


@torch.no_grad()
def _spread(parts: dict[str, Any]) -> None:
    for parameter in parts["transformer"].parameters():
        if not parameter.any():
            parameter.normal_(std=0.05)
    parts["vqvae"].quantize.embedding.weight.normal_()
    parts["vqvae"].decoder.conv_out.bias.fill_(0.5)  # pictures in the middle of 0 .. 1, where clipping hides nothing
    for name, parameter in parts["text_encoder"].named_parameters():
        if "embedding" in name:  # prompts apart from each other
            parameter.normal_(std=0.5)
