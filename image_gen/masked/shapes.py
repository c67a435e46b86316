"""The layers of token transformers from their config.json, so that they are counted without being made.

Loads no torch. Parameter counts are exact (compared with the classes in tests). P: positions that the blocks see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from image_gen.shapes import Counted, Linear


@dataclass(frozen=True)
class Blocks:
    """`count` equal blocks between `width` channels. kept, kept_text: values that one keeps for its backward pass, for
    each position and each token of the text: (with LoRA, with all weights trained). Counted on the classes in tests."""

    count: int
    width: int
    kept: tuple[float, float]
    kept_text: tuple[float, float]


@dataclass(frozen=True)
class Network(Counted):
    """A predictor of masked tokens. width: of its widest layers. fold: tokens along each side of a position that the
    blocks see. answers: ids that the head has logits for. features: channels that a schedule network reads."""

    kind: str
    width: int
    layers: tuple[Linear, ...]
    others: int
    blocks: tuple[Blocks, ...]
    fold: int
    answers: int
    features: int
    text: int


def network_of(config: Mapping[str, Any]) -> Network | None:
    """From a transformer/config.json (its `_class_name` and sizes); None for what this cannot count."""
    make = KINDS.get(str(config.get("_class_name")))
    try:
        return None if make is None else make(config)
    except KeyError:
        return None


def _attention(name: str, inside: int, told: int, count: int, *, bias: bool) -> list[Linear]:
    """q and output of `inside` channels, k and v of what it attends to."""
    found = [Linear(f"{name}.{x}", inside, inside, count, bias=bias, adapted=True) for x in ("to_q", "to_out.0")]
    return found + [Linear(f"{name}.{x}", told, inside, count, bias=bias, adapted=True) for x in ("to_k", "to_v")]


def uvit(config: Mapping[str, Any]) -> Network:
    """UVit2DModel (aMUSEd, arXiv 2401.01808): convolutional blocks with attention to the text at both ends, transformer
    layers between them; `downsample` halves the grid that all of them see."""
    width, ends = config["hidden_size"], config["block_out_channels"]
    token, inner, text = config["in_channels"], config["intermediate_size"], config["encoder_hidden_size"]
    n, bias = config["num_hidden_layers"], bool(config.get("use_bias", False))
    norms = int(config.get("ln_elementwise_affine", True))
    down, up = bool(config.get("downsample")), bool(config.get("upsample"))
    r = 2 * config["num_res_blocks"]
    layers = [
        Linear("encoder_proj", text, width, bias=bias),
        Linear("embed.conv", token, ends, bias=bias),
        Linear("cond_embed.linear_1", config["micro_cond_embed_dim"] + config["cond_embed_dim"], width, bias=bias),
        Linear("cond_embed.linear_2", width, width, bias=bias),
        Linear("sample.conv", 4 * ends, ends, down + up, bias=bias),
        Linear("channelwise_linear_1", ends, 4 * ends, r, bias=bias),
        Linear("channelwise_linear_2", 4 * ends, ends, r, bias=bias),
        Linear("cond_embeds_mapper", width, 2 * ends, r, bias=bias),
        *([Linear("kv_mapper", width, ends, r, bias=bias)] if width != ends else []),
        *(one for name in ("attn1", "attn2") for one in _attention(name, ends, ends, r, bias=bias)),
        Linear("project_to_hidden", ends, width, bias=bias),
        *(Linear(f"norm{i}.linear", width, 2 * width, n, bias=bias) for i in (1, 2, 3)),
        *(one for name in ("attn1", "attn2") for one in _attention(name, width, width, n, bias=bias)),
        Linear("ff.net.0.proj", width, 2 * inner, n, bias=bias, adapted=True),
        Linear("ff.net.2", inner, width, n, bias=bias, adapted=True),
        Linear("project_from_hidden", width, ends, bias=bias),
        Linear("mlm_layer.conv1", ends, token, bias=bias),
        Linear("mlm_layer.conv2", token, config["codebook_size"], bias=bias),
    ]
    affine = norms * (width + token + (down + up) * ends + r * ends + ends + (3 + bias) * n * width + width + token)
    # table of tokens, depthwise convolutions, response norms, and norms before attention, which are always affine
    others = config["vocab_size"] * token + affine + r * ends * (9 + bias + 8 + 2)
    blocks = (
        Blocks(r, ends, (18.3 * ends, 31.2 * ends), (5 * ends, 5 * ends + width)),
        Blocks(n, width, (12.3 * width + 4 * inner, 17.2 * width + 4 * inner), (2 * width, 2 * width)),
    )
    return Network(
        "UVit2DModel", width, tuple(layers), others, blocks, 2 if down else 1, config["codebook_size"], ends, 77
    )


def compact(config: Mapping[str, Any]) -> Network:
    """CompactTokens (`image_gen.masked.models.compact`): attention over patches of 2 x 2 tokens and all words."""
    width, token, n = config["width"], config["token_width"], config["layers"]
    inner, words, vocabulary = config["inner"], config["words_width"], config["vocabulary"]
    patches = (config["side"] // 2) ** 2
    layers = [
        Linear("patch_in", 4 * token, width),
        Linear("to_qkv", width, 3 * width, n, adapted=True),
        Linear("words_kv", words, 2 * width, n),
        Linear("to_out", width, width, n, adapted=True),
        Linear("up", width, inner, n, adapted=True),
        Linear("down", inner, width, n, adapted=True),
        Linear("modulate", words, 6 * width, n),
        Linear("patch_out", width, 4 * token),
        Linear("head", token, vocabulary),
    ]
    others = vocabulary * token + patches * width + 2 * token
    blocks = (Blocks(n, width, (10.2 * width + 2 * inner, 14.2 * width + 2 * inner), (2 * width, 2 * width)),)
    return Network("CompactTokens", width, tuple(layers), others, blocks, 2, vocabulary, token, 6)


KINDS: dict[str, Callable[[Mapping[str, Any]], Network]] = {"UVit2DModel": uvit, "CompactTokens": compact}
