"""SDAR (2510.06303) and TraDo: block diffusion on a Qwen3 body, JetLM/SDAR-*-Chat, Gen-Verse/TraDo-*."""

from __future__ import annotations

from dlm.models.base import Traits
from dlm.models.layers import Shape
from dlm.models.layout import (
    LINEAR,
    Folder,
    Layout,
    checked_block,
    decoder_name,
    decoder_shape,
    end_ids,
    mask_id,
    pad_id,
    same_name,
)
from mmrl.errors import UserError


def shape(folder: Folder) -> Shape:
    bias = bool(folder.config.get("attention_bias", False))
    return decoder_shape(folder, qk_norm=True, qkv_bias=bias, out_bias=bias)


def block_size(folder: Folder) -> int:
    """The option, else config.json's block_size, else generation_config.json's. Raises UserError without one."""
    generation = folder.generation.get("block_size", folder.generation.get("block_length"))
    for value in (folder.block, folder.config.get("block_size"), generation):
        if value is not None:
            return checked_block(value)
    raise UserError(
        f"model.block: {folder.path}/config.json has no block_size; set model.block to the size that the checkpoint "
        "was trained with (SDAR: 4 where its name says nothing else)"
    )


def traits(folder: Folder) -> Traits:
    """Releases without mask_token_id count it from the first special token of Qwen3: 151643 + 26."""
    vocabulary = folder.whole("vocab_size")
    otherwise = 151669 if folder.config.get("bos_token_id") == 151643 else None
    ends = end_ids(folder, turn="<|im_end|>")
    return Traits(
        name="sdar",
        mask_id=mask_id(folder, vocabulary, token="<|MASK|>", otherwise=otherwise),
        eos_ids=ends,
        pad_id=pad_id(folder, ends),
        logit_shift=False,
        attention="block",
        block=block_size(folder),
        window=folder.whole("max_position_embeddings", default=32768),
        lora_targets=LINEAR,
    )


LAYOUT = Layout(
    name="sdar",
    kinds=("sdar",),
    classes=("SDARForCausalLM",),
    shape=shape,
    traits=traits,
    ours=decoder_name,
    released=same_name,
)
