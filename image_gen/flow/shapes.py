"""The layers of the image transformers from their config.json, so that they are counted without being made.

Loads no torch. Parameter counts are exact (compared with diffusers' own classes in tests). W is the width of a
transformer, a token is a patch of the latent or a token of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from image_gen.shapes import Counted, Linear


@dataclass(frozen=True)
class Blocks:
    """`count` equal blocks. kept, kept_text: values of width W that one keeps for its backward pass, for each token of
    the picture and of the text: (with LoRA, with all weights trained). Counted on diffusers' classes (see the tests):
    inputs of layers and norms, q, k, v, attention's output and the feed-forward's inside."""

    count: int
    kept: tuple[float, float]
    kept_text: tuple[float, float]


@dataclass(frozen=True)
class Transformer(Counted):
    """layers: all linear layers. others: parameters of norms, tables and depthwise convolutions. patch: side of a patch
    in the latent; packed: its channels are those of a whole patch."""

    kind: str
    width: int
    layers: tuple[Linear, ...]
    others: int
    blocks: tuple[Blocks, ...]
    channels: int
    patch: int
    embedded_guidance: bool = False


def transformer_of(config: Mapping[str, Any]) -> Transformer | None:
    """From a transformer/config.json (its `_class_name` and sizes); None for what this cannot count."""
    make = KINDS.get(str(config.get("_class_name")))
    try:
        return None if make is None else make(config)
    except KeyError:
        return None


def _two(name: str, inside: int, width: int) -> list[Linear]:
    """A small network that embeds a timestep, a guidance scale or a pooled text."""
    return [Linear(f"{name}.linear_1", inside, width), Linear(f"{name}.linear_2", width, width)]


def _joint_attention(width: int, count: int, text_out: int) -> list[Linear]:
    """q, k, v and output for picture and text; the last block of some models has no text output."""
    names = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
    found = [Linear(f"attn.{name}", width, width, count, adapted=True) for name in names]
    return [*found, Linear("attn.to_add_out", width, width, text_out, adapted=True)]


def _feed_forward(name: str, width: int, count: int, *, adapted: bool) -> list[Linear]:
    return [
        Linear(f"{name}.net.0.proj", width, 4 * width, count, adapted=adapted),
        Linear(f"{name}.net.2", 4 * width, width, count, adapted=adapted),
    ]


def sd3(config: Mapping[str, Any]) -> Transformer:
    """SD3Transformer2DModel: `dual_attention_layers` have a second attention over the picture (SD3.5-Medium)."""
    dim, n = config["attention_head_dim"], config["num_layers"]
    width, patch = dim * config["num_attention_heads"], config["patch_size"]
    dual = len(config.get("dual_attention_layers") or ())
    layers = [
        Linear("pos_embed.proj", config["in_channels"] * patch**2, width),
        *_two("timestep_embedder", 256, width),
        *_two("text_embedder", config["pooled_projection_dim"], width),
        Linear("context_embedder", config["joint_attention_dim"], width),
        Linear("norm1.linear", width, 6 * width, n - dual),
        Linear("norm1.linear", width, 9 * width, dual),
        Linear("norm1_context.linear", width, 6 * width, n - 1),
        Linear("norm1_context.linear", width, 2 * width),
        *_joint_attention(width, n, n - 1),
        *(Linear(f"attn2.{name}", width, width, dual) for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *_feed_forward("ff", width, n, adapted=False),
        *_feed_forward("ff_context", width, n - 1, adapted=False),
        Linear("norm_out.linear", width, 2 * width),
        Linear("proj_out", width, config["out_channels"] * patch**2),
    ]
    norms = (4 * n + 2 * dual) * dim if config.get("qk_norm") else 0
    blocks = (Blocks(n - dual, (14, 25), (14, 25)), Blocks(dual, (20, 35), (14, 25)))
    return Transformer("SD3Transformer2DModel", width, tuple(layers), norms, blocks, config["in_channels"], patch)


def flux(config: Mapping[str, Any]) -> Transformer:
    """FluxTransformer2DModel: blocks of two streams, then blocks of one."""
    dim, n, single = config["attention_head_dim"], config["num_layers"], config["num_single_layers"]
    width, guided = dim * config["num_attention_heads"], bool(config.get("guidance_embeds"))
    packed = config["in_channels"]
    layers = [
        Linear("x_embedder", packed, width),
        Linear("context_embedder", config["joint_attention_dim"], width),
        *_two("timestep_embedder", 256, width),
        *(_two("guidance_embedder", 256, width) if guided else []),
        *_two("text_embedder", config["pooled_projection_dim"], width),
        Linear("norm1.linear", width, 6 * width, n),
        Linear("norm1_context.linear", width, 6 * width, n),
        *_joint_attention(width, n, n),
        *_feed_forward("ff", width, n, adapted=True),
        *_feed_forward("ff_context", width, n, adapted=True),
        *(Linear(f"attn.{name}", width, width, single, adapted=True) for name in ("to_q", "to_k", "to_v")),
        Linear("norm.linear", width, 3 * width, single),
        Linear("proj_mlp", width, 4 * width, single),
        Linear("single.proj_out", 5 * width, width, single),
        Linear("norm_out.linear", width, 2 * width),
        Linear("proj_out", width, config.get("out_channels") or packed),
    ]
    blocks = (Blocks(n, (19, 25), (19, 25)), Blocks(single, (12, 21), (12, 21)))
    norms = (4 * n + 2 * single) * dim
    return Transformer(
        "FluxTransformer2DModel", width, tuple(layers), norms, blocks, packed // 4, 2, embedded_guidance=guided
    )


def sana(config: Mapping[str, Any]) -> Transformer | None:
    """SanaTransformer2DModel: linear attention, cross-attention to the text, convolutions as feed-forward."""
    if config.get("qk_norm") or config.get("guidance_embeds") or config.get("norm_elementwise_affine"):
        return None  # Sana 1.5 and Sprint
    n, patch, text = config["num_layers"], config["patch_size"], config["cross_attention_dim"]
    width = config["attention_head_dim"] * config["num_attention_heads"]
    inner, plain = int(config["mlp_ratio"] * width), bool(config.get("attention_bias"))
    layers = [
        Linear("patch_embed.proj", config["in_channels"] * patch**2, width),
        *_two("timestep_embedder", 256, width),
        Linear("time_embed.linear", width, 6 * width),
        *_two("caption_projection", config["caption_channels"], width),
        *(Linear(f"attn1.{x}", width, width, n, bias=plain, adapted=True) for x in ("to_q", "to_k", "to_v")),
        *(Linear(f"attn2.{x}", text, width, n, adapted=True) for x in ("to_k", "to_v")),
        *(Linear(x, width, width, n, adapted=True) for x in ("attn2.to_q", "attn1.to_out.0", "attn2.to_out.0")),
        Linear("ff.conv_inverted", width, 2 * inner, n),
        Linear("ff.conv_point", inner, width, n, bias=False),
        Linear("proj_out", width, config["out_channels"] * patch**2),
    ]
    others = width + 2 * width + n * (6 * width + 2 * inner * (9 + 1))  # norm, tables, depthwise convolutions
    blocks = (Blocks(n, (34, 38), (2, 2)),)
    return Transformer("SanaTransformer2DModel", width, tuple(layers), others, blocks, config["in_channels"], patch)


def qwen_image(config: Mapping[str, Any]) -> Transformer:
    """QwenImageTransformer2DModel: blocks of two streams."""
    dim, n, packed = config["attention_head_dim"], config["num_layers"], config["in_channels"]
    width, text, patch = dim * config["num_attention_heads"], config["joint_attention_dim"], config["patch_size"]
    layers = [
        Linear("img_in", packed, width),
        Linear("txt_in", text, width),
        *_two("timestep_embedder", 256, width),
        Linear("img_mod.1", width, 6 * width, n),
        Linear("txt_mod.1", width, 6 * width, n),
        *_joint_attention(width, n, n),
        *_feed_forward("img_mlp", width, n, adapted=True),
        *_feed_forward("txt_mlp", width, n, adapted=True),
        Linear("norm_out.linear", width, 2 * width),
        Linear("proj_out", width, patch**2 * config["out_channels"]),
    ]
    blocks = (Blocks(n, (19, 25), (19, 25)),)
    others = text + 4 * dim * n
    return Transformer("QwenImageTransformer2DModel", width, tuple(layers), others, blocks, packed // patch**2, patch)


KINDS: dict[str, Callable[[Mapping[str, Any]], Transformer | None]] = {
    "SD3Transformer2DModel": sd3,
    "FluxTransformer2DModel": flux,
    "SanaTransformer2DModel": sana,
    "QwenImageTransformer2DModel": qwen_image,
}
