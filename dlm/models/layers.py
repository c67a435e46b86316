"""The one transformer body of all families: a Llama / Qwen decoder whose attention mask is the caller's.

Axes: n rows, l columns of this forward, k columns that are attended to, d width, h heads, e size of a head.
Modules are named as in Llama and Qwen (`model.layers.0.self_attn.q_proj`); what a release calls them is the business
of its layout. Norms and rotations are computed in float32 (in float64 for a float64 model), whatever the weights are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dlm.models.base import Cache, MaskedLM, Traits


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    width    of the residual stream. inner  of the feed-forward part. head  size of one head.
    heads    of the queries. kv_heads  of keys and values; divides heads.
    qk_norm  RMSNorm over each head's query and key (Qwen3). qkv_bias, out_bias  of the attention's linear layers.
    tied     the output layer is the embedding.
    """

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    theta: float
    eps: float
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    tied: bool = False


def _full(x: Tensor) -> Tensor:
    """In the precision that norms and rotations are computed in."""
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = _full(x)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight * wide.to(x.dtype)).to(x.dtype)  # float32 weights meet bf16 activations under autocast


def rotation(positions_nl: Tensor, size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [n, 1, l, e], one angle for columns i and i + e/2 of a head (RoPE, arXiv 2104.09864)."""
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    exponent = torch.arange(0, size, 2, device=positions_nl.device).to(dtype) / size
    angles = positions_nl[:, None, :, None].to(dtype) * (1.0 / theta**exponent)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """x [n, h, l, e] turned by `rotation`; the dtype is kept."""
    wide = _full(x)
    first, second = wide.chunk(2, dim=-1)
    return (wide * turn[0] + torch.cat([-second, first], dim=-1) * turn[1]).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.shape, self.layer = shape, layer
        queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
        self.q_proj = nn.Linear(shape.width, queries, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(shape.width, keys, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(shape.width, keys, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(queries, shape.width, bias=shape.out_bias)
        if shape.qk_norm:
            self.q_norm = RMSNorm(shape.head, shape.eps)
            self.k_norm = RMSNorm(shape.head, shape.eps)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], attend: Tensor | None, cache: Cache | None) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, self.shape.head)) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.shape.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = rotate(q.transpose(1, 2), turn), rotate(k.transpose(1, 2), turn), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        group = self.shape.heads // self.shape.kv_heads
        if group > 1:  # copies: with a mask, the fast kernels want as many key heads as query heads
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=attend)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(-2))
        return out


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.width, shape.eps)
        self.self_attn = Attention(shape, layer)
        self.post_attention_layernorm = RMSNorm(shape.width, shape.eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], attend: Tensor | None, cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, attend, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.eps)


@dataclass(frozen=True)
class Release:
    """What a checkpoint's folder holds beside weights and tokenizer, so that it can be written again.

    config  the contents of config.json. files  names and bytes of small files that belong to it; never run.
    """

    config: dict[str, Any]
    files: dict[str, bytes]


class Transformer(MaskedLM):
    """A masked diffusion language model of any family: `shape` gives its sizes, `traits` the rest.

    checkpointing  recompute each layer's activations in the backward pass; forwards with a cache are left alone.
    release        where it was loaded from a folder: what `dlm.models.loading.save_model` writes again.
    """

    def __init__(self, shape: Shape, traits: Traits, release: Release | None = None) -> None:
        super().__init__()
        self.shape, self.traits, self.release = shape, traits, release
        self.checkpointing = False
        self.model = Body(shape)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.tie()

    def tie(self) -> None:
        """Share the table of a tied model; to be called again after parameters were replaced."""
        if self.shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def embed(self) -> nn.Embedding:
        return self.model.embed_tokens

    @property
    def head(self) -> nn.Linear:
        return self.lm_head

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.layers

    def checkpoint_gradients(self, *, on: bool = True) -> None:
        self.checkpointing = on

    def forward(self, *args: Any, **options: Any) -> Tensor:
        """`hidden`, for wrappers that call a module."""
        return self.hidden(*args, **options)

    def hidden(
        self, ids_nl: Tensor, *, positions_nl: Tensor, attend_nqk: Tensor | None, cache: Cache | None = None
    ) -> Tensor:
        """See `MaskedLM.hidden`. With `logit_shift` a column at position 0 has no predecessor and keeps its own state,
        so that a row's states do not depend on the pads before it."""
        if self.traits.logit_shift and cache is not None:
            raise ValueError("a model with logit_shift takes no cache: the first column has no predecessor")
        attend = attend_nqk if attend_nqk is None else attend_nqk[..., None, :, :]
        x = self.model.embed_tokens(ids_nl)
        turn = rotation(positions_nl, self.shape.head, self.shape.theta, x.dtype)
        again = self.checkpointing and cache is None and torch.is_grad_enabled()
        for layer in self.model.layers:
            if again:
                x = checkpoint(layer, x, turn, attend, None, use_reentrant=False)
            else:
                x = layer(x, turn, attend, cache)
        out: Tensor = self.model.norm(x)
        if self.traits.logit_shift:
            before = torch.cat([out[:, :1], out[:, :-1]], dim=1)
            out = torch.where((positions_nl == 0)[..., None], out, before)
        return out
