"""A compact token transformer of our own: canvases of token ids, words and their pooled vector to logits.

It reads patches of 2 x 2 tokens, so attention runs over a quarter of the positions, and answers for every token. Axes:
N canvases, h * w = L tokens of a canvas (row by row), P = L / 4 patches, S words, D width, C width of a token, V
vocabulary (the codebook, the mask id and what is left over).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn
from torch.nn import functional

#: Tokens along each side of a patch.
PATCH = 2


class Block(nn.Module):
    """Attention of patches over all patches and all words, then a perceptron; both scaled and gated by the pooled
    vector, gates zero at the start (adaLN-zero, arXiv 2212.09748)."""

    def __init__(self, *, width: int, heads: int, words_width: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.words_kv = nn.Linear(words_width, 2 * width)
        self.to_out = nn.Linear(width, width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.modulate = nn.Linear(words_width, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x_npd: Tensor, words_nsw: Tensor, pooled_nw: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(pooled_nw)[:, None].chunk(6, dim=-1)
        seen_npd = self.norm1(x_npd) * (1 + scale1) + shift1
        query, key, value = self.to_qkv(seen_npd).chunk(3, dim=-1)
        word_key, word_value = self.words_kv(words_nsw).chunk(2, dim=-1)
        found = functional.scaled_dot_product_attention(
            self._split(query),
            self._split(torch.cat([key, word_key], 1)),
            self._split(torch.cat([value, word_value], 1)),
        )
        x_npd = x_npd + gate1 * self.to_out(found.transpose(1, 2).flatten(2))
        inner = functional.gelu(self.up(self.norm2(x_npd) * (1 + scale2) + shift2), approximate="tanh")
        answer: Tensor = x_npd + gate2 * self.down(inner)
        return answer

    def _split(self, x_npd: Tensor) -> Tensor:
        return x_npd.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class CompactTokens(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """Stored and loaded by diffusers' `save_pretrained` and `from_pretrained`; LoRA by its peft mixin."""

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        *,
        vocabulary: int,
        side: int,
        words_width: int,
        width: int = 96,
        token_width: int = 32,
        layers: int = 3,
        heads: int = 4,
        inner: int = 288,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        patches = (side // PATCH) ** 2
        self.token = nn.Embedding(vocabulary, token_width)
        self.patch_in = nn.Linear(PATCH**2 * token_width, width)
        self.place = nn.Parameter(0.02 * torch.randn(patches, width))
        self.blocks = nn.ModuleList(
            Block(width=width, heads=heads, words_width=words_width, inner=inner) for _ in range(layers)
        )
        self.patch_out = nn.Linear(width, PATCH**2 * token_width)
        self.norm = nn.LayerNorm(token_width)
        self.head = nn.Linear(token_width, vocabulary)

    def forward(self, ids_nhw: Tensor, words_nsw: Tensor, pooled_nw: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [N, L, V], features [N, L, C] that the head reads). ids_nhw: int64, `side` along both axes."""
        token_nhwc = self.token(ids_nhw)
        x_npd = self.patch_in(_patches(token_nhwc)) + self.place
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x_npd = self._gradient_checkpointing_func(block, x_npd, words_nsw, pooled_nw)
            else:
                x_npd = block(x_npd, words_nsw, pooled_nw)
        feature_nlc = self.norm(_tokens(self.patch_out(x_npd), tuple(ids_nhw.shape[1:])) + token_nhwc.flatten(1, 2))
        return self.head(feature_nlc), feature_nlc


def _patches(token_nhwc: Tensor) -> Tensor:
    """[N, h, w, C] to [N, P, 4 C], patches row by row."""
    split: Any = token_nhwc.unflatten(1, (-1, PATCH)).unflatten(3, (-1, PATCH))  # [N, h/2, 2, w/2, 2, C]
    patched: Tensor = split.transpose(2, 3).flatten(3).flatten(1, 2)
    return patched


def _tokens(patch_npx: Tensor, size: tuple[int, ...]) -> Tensor:
    """The inverse: [N, P, 4 C] to [N, L, C]."""
    height, width = size
    split: Any = patch_npx.unflatten(1, (height // PATCH, width // PATCH)).unflatten(3, (PATCH, PATCH, -1))
    tokens: Tensor = split.transpose(2, 3).flatten(3, 4).flatten(1, 2).flatten(1, 2)
    return tokens
