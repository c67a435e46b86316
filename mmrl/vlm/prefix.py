"""Shared prefix, form `cache`: a prompt and its pictures run once; its rows borrow the key-value cache.

Source: the equality of Prefix Grouper (arXiv 2506.05433), reached here without touching attention. The prefix runs
with a cache that stays in the autograd graph. Its keys, values and last hidden state are cut off as leaves; each chunk
of rows runs on the leaves and sends its gradient into them; `close` makes the one backward pass through the prefix,
vision tower included. Memory is that of the prefix and of one chunk, however many rows a prompt has.

Axes: B prompts, P prompt positions, n rows of a piece, R completion positions, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmrl.vlm import cache as caches
from mmrl.vlm.adapters import Shape
from mmrl.vlm.encode import Prompt, stack
from mmrl.vlm.rows import Completions


@dataclass
class Prefix:
    """An opened prefix: `graph` are the tensors in its own graph, `leaves` the same values cut off from it."""

    graph: list[torch.Tensor]
    leaves: list[torch.Tensor]  # keys and values of every layer, then the last hidden states [B, d]
    mask: torch.Tensor  # bool [B, P]
    grad: bool

    @property
    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(zip(self.leaves[0:-1:2], self.leaves[1:-1:2], strict=True))

    @property
    def last(self) -> torch.Tensor:
        """Hidden state [B, d] of each prompt's last position: it predicts the first token of all its rows."""
        return self.leaves[-1]


def open_prefix(shape: Shape, prompts: Sequence[Prompt], *, grad: bool) -> Prefix:
    """Run B prompts, pictures included, once."""
    batch = stack(prompts, shape.device)
    cache = caches.empty(shape.config)
    with torch.set_grad_enabled(grad):
        hidden = shape.hidden(
            batch["ids"], mask=batch["mask"], positions=batch["positions"], media=batch["media"], cache=cache
        )
        at = torch.arange(len(prompts), device=hidden.device)
        last = hidden[at, batch["lengths"] - 1]
    graph = [x for pair in caches.pairs(cache) for x in pair] + [last]
    leaves = [x.detach().requires_grad_(grad and x.requires_grad) for x in graph]
    return Prefix(graph if grad else [], leaves, batch["mask"], grad)


def completion_hidden(shape: Shape, prefix: Prefix, rows: Completions, prompt_n: torch.Tensor) -> torch.Tensor:
    """Hidden states [n, R, d] that predict the tokens of the rows; row i continues prompt `prompt_n[i]`.

    Column 0 is the prefix's last hidden state. The last token of a row predicts nothing and is not run.
    """
    first = prefix.last.index_select(0, prompt_n)[:, None]
    width = rows.ids.shape[1] - 1
    if width == 0:
        return first
    mask = torch.cat([prefix.mask[prompt_n], rows.mask[:, :width]], 1)
    positions = (rows.first[:, None] + torch.arange(width, device=rows.ids.device)).expand(3, -1, -1)
    cache = caches.lent(prefix.layers, prompt_n, shape.config)
    hidden = shape.hidden(rows.ids[:, :width], mask=mask, positions=positions, cache=cache)
    return torch.cat([first, hidden], 1)


def close_prefix(prefix: Prefix) -> None:
    """Backward through the prefix with the gradients that the rows left in the leaves."""
    pairs = [(g, x.grad) for g, x in zip(prefix.graph, prefix.leaves, strict=True) if x.grad is not None]
    prefix.graph = []
    if pairs:
        torch.autograd.backward([g for g, _ in pairs], [x for _, x in pairs])
    prefix.leaves = [x.detach() for x in prefix.leaves]
