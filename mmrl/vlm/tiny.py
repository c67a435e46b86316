"""Random checkpoints of the three Qwen-VL shapes, small enough for tests and CPU benchmarks.

They are written with `save_pretrained`, processor beside the weights, so that loading them runs the real code.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def character_tokenizer() -> Any:
    """One token a printable ASCII character, plus the special tokens of Qwen-VL."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(set(string.printable) - set("\r\x0b\x0c\t"))
    vocabulary = {token: i for i, token in enumerate((*_SPECIAL, "<|unk|>", *letters))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|unk|>",
        additional_special_tokens=[t for t in _SPECIAL if t not in ("<|im_end|>", "<|endoftext|>")],
        clean_up_tokenization_spaces=False,
    )


def processor(kind: str, *, patch: int, merge: int = 2, min_pixels: int = 1, max_pixels: int = 2**20) -> Any:
    """Processor of the real class for `kind`."""
    import transformers
    from transformers import Qwen2_5_VLProcessor, Qwen2VLProcessor, Qwen3VLProcessor

    makers: dict[str, Any] = {
        "qwen2_vl": (Qwen2VLProcessor, transformers.Qwen2VLVideoProcessor),
        "qwen2_5_vl": (Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor),
        "qwen3_vl": (Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor),
    }
    whole, video = makers[kind]
    shape = {"patch_size": patch, "merge_size": merge, "temporal_patch_size": 2}
    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return whole(
        image_processor=transformers.Qwen2VLImageProcessor(**shape, size=size),
        tokenizer=character_tokenizer(),
        video_processor=video(**shape),
        chat_template=CHAT_TEMPLATE,
    )


def _text(hidden: int, layers: int, heads: int, kv_heads: int, vocabulary: int, head_dim: int) -> dict[str, Any]:
    half = head_dim // 2
    first = half - 2 * (3 * half // 8)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [first, 3 * half // 8, 3 * half // 8]}
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096,
        "rope_parameters": rope,
    }


def config(
    kind: str,
    *,
    vocabulary: int = 120,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vision_hidden: int = 32,
    vision_layers: int = 2,
    vision_heads: int = 2,
    patch: int = 4,
) -> Any:
    """Configuration of `kind`, whose token ids are those of `character_tokenizer`."""
    from transformers import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

    head_dim = hidden // heads
    text = _text(hidden, layers, heads, kv_heads, vocabulary, head_dim)
    vision: dict[str, Any] = {
        "depth": vision_layers,
        "num_heads": vision_heads,
        "patch_size": patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    at = {token: i for i, token in enumerate(_SPECIAL)}
    ids = {
        "image_token_id": at["<|image_pad|>"],
        "video_token_id": at["<|video_pad|>"],
        "vision_start_token_id": at["<|vision_start|>"],
        "vision_end_token_id": at["<|vision_end|>"],
    }
    ends = {"eos_token_id": at["<|im_end|>"], "pad_token_id": at["<|endoftext|>"]}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": vision_hidden, "hidden_size": hidden, "mlp_ratio": 2}
        text |= ends | {"bos_token_id": None}
        return Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    vision |= {"hidden_size": vision_hidden, "intermediate_size": 2 * vision_hidden, "out_hidden_size": hidden}
    if kind == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [vision_layers - 1], "window_size": 4 * patch}
        text |= ends | {"bos_token_id": None}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    if kind == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
        text |= {"head_dim": head_dim, "pad_token_id": at["<|endoftext|>"]}
        return Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    raise ValueError(f"unknown kind {kind!r}; valid: {KINDS}")


def build(kind: str, folder: Path, *, seed: int = 0, scale: float = 0.1, max_pixels: int = 2**20, **sizes: Any) -> Path:
    """Write a random checkpoint of `kind` into `folder` and return it.

    `scale` is the standard deviation of the weights: larger than the usual 0.02, so that attention, positions and
    pictures visibly move the output and an error in any of them fails a test.
    """
    from transformers import AutoModelForImageTextToText, GenerationConfig

    torch.manual_seed(seed)
    made = config(kind, **sizes)
    model = AutoModelForImageTextToText.from_config(made)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=scale)
        else:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    processor(kind, patch=made.vision_config.patch_size, max_pixels=max_pixels).save_pretrained(folder)
    return Path(folder)
