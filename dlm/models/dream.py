"""Dream 7B (2508.15487), DiffuCoder, Dream-Coder: a Qwen2.5 body without causal mask whose outputs are shifted."""

from __future__ import annotations

from dlm.models.base import Traits
from dlm.models.layers import Shape
from dlm.models.layout import (
    LINEAR,
    Folder,
    Layout,
    decoder_name,
    decoder_shape,
    end_ids,
    mask_id,
    no_block,
    pad_id,
    same_name,
)


def shape(folder: Folder) -> Shape:
    """Queries, keys and values have biases, whatever config.json says of attention_bias."""
    return decoder_shape(folder, qk_norm=False, qkv_bias=True)


def traits(folder: Folder) -> Traits:
    no_block(folder)
    vocabulary = folder.whole("vocab_size")
    ends = end_ids(folder, turn="<|im_end|>")
    return Traits(
        name="dream",
        mask_id=mask_id(folder, vocabulary, token="<|mask|>"),
        eos_ids=ends,
        pad_id=pad_id(folder, ends),
        logit_shift=True,
        attention="full",
        block=None,
        window=folder.whole("max_position_embeddings", default=32768),
        lora_targets=LINEAR,
    )


LAYOUT = Layout(
    name="dream",
    kinds=("Dream", "dream"),
    classes=("DreamModel", "DreamBaseModel"),
    shape=shape,
    traits=traits,
    ours=decoder_name,
    released=same_name,
)
