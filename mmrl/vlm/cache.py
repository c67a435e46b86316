"""Key-value caches: one that grows in place while decoding, one that lends a shared prefix to a single forward."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

#: Columns added when a growing cache is full.
_STEP = 64


class GrowingLayer(DynamicLayer):
    """Keys and values [n, heads, length, d] as views of larger buffers: a new token writes one column, copies none."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.length = keys.shape[-2]
        self._buffers = tuple(self._enlarged(x, self.length + _STEP) for x in (keys, values))
        self._show()

    @staticmethod
    def _enlarged(x: torch.Tensor, columns: int) -> torch.Tensor:
        n, heads, length, d = x.shape
        out = x.new_empty(n, heads, columns, d)
        out[:, :, :length] = x
        return out

    def _show(self) -> None:
        self.keys, self.values = (b[:, :, : self.length] for b in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stop = self.length + key_states.shape[-2]
        if stop > self._buffers[0].shape[-2]:
            self._buffers = tuple(self._enlarged(x, stop + _STEP) for x in (self.keys, self.values))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : stop] = new
        self.length = stop
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._buffers = tuple(b.index_select(0, indices) for b in self._buffers)
        self._show()


class LentLayer(DynamicLayer):
    """A prefix [B, heads, P, d] that rows [n] borrow for one forward; what they add is used and not kept.

    Repeating happens inside `update`, layer by layer, so that only what autograd saves is alive.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, prompt_n: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.keys, self.values, self.prompt_n = keys, values, prompt_n

    def _repeat(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            return x.expand(len(self.prompt_n), -1, -1, -1)
        return x.index_select(0, self.prompt_n)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        keys = torch.cat([self._repeat(self.keys), key_states], dim=-2)
        return keys, torch.cat([self._repeat(self.values), value_states], dim=-2)


def empty(config: Any) -> Any:
    """A cache that the prefix forward fills; its tensors stay in the autograd graph."""
    return DynamicCache(config=config)


def pairs(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(keys, values) of every layer."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def growing(filled: list[tuple[torch.Tensor, torch.Tensor]], prompt_n: torch.Tensor, config: Any) -> Any:
    """The cache of `filled` prompts repeated for rows: row i continues prompt `prompt_n[i]`."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer(k.index_select(0, prompt_n), v.index_select(0, prompt_n)) for k, v in filled]
    return cache


def lent(filled: list[tuple[torch.Tensor, torch.Tensor]], prompt_n: torch.Tensor, config: Any) -> Any:
    """The shared prefix for one forward of rows."""
    cache = DynamicCache(config=config)
    cache.layers = [LentLayer(k, v, prompt_n) for k, v in filled]
    return cache
