"""Tiny random checkpoints in the layout of each release, to be read by the real loading code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlm.models import loading
from dlm.models.layers import Release, Transformer
from dlm.models.layout import Folder

Kind = Literal["llada", "sdar", "dream", "a2d"]
KINDS: tuple[Kind, ...] = ("llada", "sdar", "dream", "a2d")

#: End of text, end of a turn, mask: what each release calls them.
_TOKENS = {
    "llada": ("<|endoftext|>", "<|eot_id|>", "<|mdm_mask|>"),
    "sdar": ("<|endoftext|>", "<|im_end|>", "<|MASK|>"),
    "dream": ("<|endoftext|>", "<|im_end|>", "<|mask|>"),
    "a2d": ("<|endoftext|>", "<|im_end|>", "<|mask|>"),
}


def write_tiny(
    path: str | Path,
    kind: Kind,
    *,
    seed: int = 0,
    layers: int = 2,
    width: int = 32,
    inner: int = 64,
    heads: int = 4,
    kv_heads: int | None = None,
    head: int = 8,
    window: int = 512,
    block: int = 4,
    tied: bool = False,
    shard: int = 5 * 10**9,
    dtype: torch.dtype = torch.float32,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a model of these sizes with random weights and a byte-level tokenizer; returns the folder.

    kv_heads  None: all heads for llada, as released, half of them for the others. LLaDA and Dream: head = width/heads.
    block     sdar: written into config.json. shard  bytes of one file at most. config  further keys of config.json.
    """
    tokenizer = byte_tokenizer(*_TOKENS[kind])
    kv = kv_heads or (heads if kind == "llada" else heads // 2)
    body = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": window,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
    }
    llada = {
        "d_model": width,
        "mlp_hidden_size": inner,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": kv,
        "max_sequence_length": window,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "weight_tying": tied,
    }
    whole = _FIXED[kind] | (llada if kind == "llada" else body)
    whole |= {"torch_dtype": str(dtype).removeprefix("torch.")} | _special(tokenizer, kind)
    if kind in ("sdar", "a2d"):
        whole["head_dim"] = head
    if kind == "sdar":
        whole["block_size"] = block
    whole |= config or {}
    told = Folder(path=str(path), config=whole, generation={}, tokenizer=tokenizer)
    layout = loading.layout_of(whole, str(path))
    model = Transformer(layout.shape(told), layout.traits(told), Release(config=whole, files={}))
    randomise(model, seed=seed)
    loading.save_model(model, tokenizer, path, dtype=dtype, shard=shard)
    return Path(path)


_FIXED: dict[str, dict[str, Any]] = {
    "llada": {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "block_type": "llama",
        "block_group_size": 1,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "activation_type": "silu",
        "rope": True,
        "rope_full_precision": True,
        "alibi": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "attention_layer_norm": False,
        "input_emb_norm": False,
        "scale_logits": False,
    },
    "sdar": {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "attention_bias": False, "rope_scaling": None},
    "dream": {
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        "rope_scaling": None,
        "use_sliding_window": False,
    },
    "a2d": {"model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"], "attention_bias": False},
}


def _special(tokenizer: Any, kind: Kind) -> dict[str, Any]:
    """Sizes and ids; LLaDA's table is padded as in the release, A2D leaves the mask token to the tokenizer."""
    size = len(tokenizer)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if kind == "llada":
        size = -(-size // 128) * 128
        ids["embedding_size"] = size
    if kind != "a2d":
        ids["mask_token_id"] = tokenizer.convert_tokens_to_ids(_TOKENS[kind][2])
    return {"vocab_size": size, **ids}


def byte_tokenizer(end: str, turn: str, mask: str, *, in_config: bool = True) -> Any:
    """A byte-level tokenizer without merges: 256 bytes and the three special tokens. in_config: mask_token is set."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens([end, turn, mask])
    names = {"eos_token": end, "pad_token": end} | ({"mask_token": mask} if in_config else {})
    return PreTrainedTokenizerFast(tokenizer_object=bare, clean_up_tokenization_spaces=False, **names)


@torch.no_grad()
def randomise(model: nn.Module, *, seed: int) -> None:
    """Weights that say something: variance is kept by each layer, norms and biases are not trivial."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, scale: float) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like) * scale

    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.copy_(normal(parameter, 1.0 if "embed" in name else parameter.shape[1] ** -0.5))
        elif "norm" in name:
            parameter.copy_(1.0 + normal(parameter, 0.1))
        else:
            parameter.copy_(normal(parameter, 0.1))
