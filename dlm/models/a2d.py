"""Small autoregressive models made bidirectional (the dLLM library, 2602.22661): dllm-hub/Qwen3-0.6B-diffusion-*.

One layout for both kinds of releases: full attention (mdlm), and, when a block size is given, block attention (bd3lm:
its config.json does not tell, so model.block must be set; the releases use 32).
"""

from __future__ import annotations

from typing import Literal

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


def shape(folder: Folder) -> Shape:
    """Qwen3 normalises heads, Qwen2 has biases, Llama neither."""
    kind = str(folder.config.get("model_type"))
    bias = bool(folder.config.get("attention_bias", False))
    qwen2 = kind == "a2d-qwen2"
    return decoder_shape(folder, qk_norm=kind == "a2d-qwen3", qkv_bias=bias or qwen2, out_bias=bias and not qwen2)


def traits(folder: Folder) -> Traits:
    vocabulary = folder.whole("vocab_size")
    ends = end_ids(folder, turn="<|im_end|>")
    block = folder.block if folder.block is not None else folder.config.get("block_size")
    attention: Literal["full", "block"] = "full" if block is None else "block"
    return Traits(
        name="a2d",
        mask_id=mask_id(folder, vocabulary, token="<|mask|>"),
        eos_ids=ends,
        pad_id=pad_id(folder, ends),
        logit_shift=False,
        attention=attention,
        block=None if block is None else checked_block(block),
        window=folder.whole("max_position_embeddings", default=32768),
        lora_targets=LINEAR,
    )


LAYOUT = Layout(
    name="a2d",
    kinds=("a2d-qwen3", "a2d-qwen2", "a2d-llama"),
    classes=("A2DQwen3LMHeadModel", "A2DQwen2LMHeadModel", "A2DLlamaLMHeadModel"),
    shape=shape,
    traits=traits,
    ours=decoder_name,
    released=same_name,
)
