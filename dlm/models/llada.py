"""LLaDA (2502.09992): a Llama body without causal mask under OLMo-like names, GSAI-ML/LLaDA-8B-Base, -Instruct, 1.5."""

from __future__ import annotations

import re

from dlm.models.base import Traits
from dlm.models.layers import Shape
from dlm.models.layout import Folder, Layout, end_ids, mask_id, no_block, pad_id

_TOP = {"model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out"}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
_TOP_BACK = {there: here for here, there in _TOP.items()}
_BACK = {there: here for here, there in _IN_LAYER.items()}
#: Keys of config.json whose other values would need another body.
_USUAL = {
    "block_type": ("llama",),
    "block_group_size": (1,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "bias_for_layer_norm": (False, None),
    "activation_type": ("silu",),
    "rope": (True,),
    "alibi": (False,),
    "include_bias": (False,),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
    "multi_query_attention": (False, None),
}


def shape(folder: Folder) -> Shape:
    """Keys of the LLaDA configuration; `embedding_size` is the vocabulary padded to a multiple of 128."""
    folder.insist(_USUAL)
    width, heads = folder.whole("d_model"), folder.whole("n_heads")
    return Shape(
        vocabulary=folder.whole("embedding_size", "vocab_size"),
        width=width,
        inner=folder.whole("mlp_hidden_size"),
        layers=folder.whole("n_layers"),
        heads=heads,
        kv_heads=folder.whole("n_kv_heads", default=heads),
        head=width // heads,
        theta=folder.number("rope_theta", default=10000.0),
        eps=folder.number("rms_norm_eps", default=1e-5),
        qkv_bias=bool(folder.config.get("include_qkv_bias", False)),
        tied=bool(folder.config.get("weight_tying", True)),
    )


def traits(folder: Folder) -> Traits:
    """lora_targets: of the seven names on the d1 list only these four exist in the released module."""
    no_block(folder)
    vocabulary = folder.whole("embedding_size", "vocab_size")
    otherwise = 126336 if vocabulary == 126464 else None  # copies of the release without the key
    ends = end_ids(folder, turn="<|eot_id|>")
    return Traits(
        name="llada",
        mask_id=mask_id(folder, vocabulary, token="<|mdm_mask|>", otherwise=otherwise),
        eos_ids=ends,
        pad_id=pad_id(folder, ends),
        logit_shift=False,
        attention="full",
        block=None,
        window=folder.whole("max_sequence_length", default=1024),
        lora_targets=("q_proj", "k_proj", "v_proj", "up_proj"),
    )


def released(name: str) -> str:
    """`model.layers.3.mlp.down_proj.weight` -> `model.transformer.blocks.3.ff_out.weight`; of modules too."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+?)(\.weight|\.bias)?", name)
    if found:
        layer, module, end = found.groups()
        return f"model.transformer.blocks.{layer}.{_IN_LAYER[module]}{end or ''}"
    module, end = re.fullmatch(r"(.+?)(\.weight|\.bias)?", name).groups()  # type: ignore[union-attr]
    return f"model.transformer.{_TOP[module]}{end or ''}"


def ours(name: str) -> str | None:
    """The inverse of `released`; None for a name that LLaDA does not have."""
    found = re.fullmatch(r"model\.transformer\.(?:blocks\.(\d+)\.)?(\w+)(\.weight|\.bias)?", name)
    if not found:
        return None
    layer, module, end = found.groups()
    if layer is None:
        return f"{_TOP_BACK[module]}{end or ''}" if module in _TOP_BACK else None
    return f"model.layers.{layer}.{_BACK[module]}{end or ''}" if module in _BACK else None


LAYOUT = Layout(
    name="llada",
    kinds=("llada",),
    classes=("LLaDAModelLM",),
    shape=shape,
    traits=traits,
    ours=ours,
    released=released,
)
