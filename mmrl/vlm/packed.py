"""Shared prefix, form `packed`: one sequence [P; R_1; ...; R_G] a prompt, with a block mask and restarted positions.

Source: Prefix Grouper (arXiv 2506.05433), its single-call form. A token sees the prefix and the past of its own
completion, nothing of the others. Works with gradient checkpointing, where no cache may be used.

Axes: B packed sequences, W packed width, n rows of a piece, R completion positions, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmrl.vlm.adapters import Shape
from mmrl.vlm.encode import Prompt
from mmrl.vlm.rows import Row


@dataclass
class Layout:
    """Where things lie in packed sequences.

    ids        int64 [B, W]; positions int64 [3, B, W], every completion starting at the prompt's next position.
    block      int64 [B, W]: 0 prefix, 1.. one number a completion, -1 padding.
    at         int64 [n, R]: flat place (b * W + w) of the hidden state that predicts token r of row n.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    block: torch.Tensor
    at: torch.Tensor


def layout(rows: Sequence[Row], prompts: Sequence[Prompt], prompt_n: Sequence[int]) -> Layout:
    """Pack the rows behind their prompts; the last token of a row predicts nothing and is left out."""
    members: list[list[int]] = [[] for _ in prompts]
    for i, b in enumerate(prompt_n):
        members[b].append(i)
    widths = [len(p) + sum(len(rows[i]) - 1 for i in m) for p, m in zip(prompts, members, strict=True)]
    width, longest = max(widths), max(len(r) for r in rows)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    positions = torch.zeros(3, len(prompts), width, dtype=torch.long)
    block = torch.full((len(prompts), width), -1)
    at = torch.zeros(len(rows), longest, dtype=torch.long)
    for b, prompt in enumerate(prompts):
        start = len(prompt)
        ids[b, :start], positions[:, b, :start], block[b, :start] = prompt.ids, prompt.positions, 0
        for number, i in enumerate(members[b], start=1):
            inner = len(rows[i]) - 1
            place = slice(start, start + inner)
            ids[b, place], block[b, place] = rows[i].ids[:-1], number
            positions[:, b, place] = prompt.next_position + torch.arange(inner)
            at[i, 0] = b * width + len(prompt) - 1
            at[i, 1 : inner + 1] = b * width + torch.arange(start, start + inner)
            start += inner
    return Layout(ids, positions, block, at)


def block_mask(block_bw: torch.Tensor) -> torch.Tensor:
    """Bool [B, 1, W, W], True where query u sees key v: v <= u, and v in the prefix or in u's own completion.

    Padding sees itself only: a query without any key would be NaN in some kernels.
    """
    query, key = block_bw[:, :, None], block_bw[:, None, :]
    order = torch.arange(block_bw.shape[1], device=block_bw.device)
    past = order[:, None] >= order[None, :]
    seen = past & ((key == 0) | (key == query)) & (query >= 0) & (key >= 0)
    itself = order[:, None] == order[None, :]
    return (seen | itself)[:, None]


def completion_hidden(
    shape: Shape, rows: Sequence[Row], prompts: Sequence[Prompt], prompt_n: Sequence[int]
) -> torch.Tensor:
    """Hidden states [n, R, d] that predict the tokens of the rows; row i continues `prompts[prompt_n[i]]`."""
    device = shape.device
    place = layout(rows, prompts, prompt_n)
    names = sorted({k for p in prompts for k in p.media})
    media = {k: torch.cat([p.media[k] for p in prompts if k in p.media]).to(device) for k in names}
    mask = block_mask(place.block.to(device))
    if shape.attention == "eager":  # adds the mask to the scores
        dtype = shape.language.get_input_embeddings().weight.dtype  # type: ignore[operator]
        mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)
    hidden = shape.hidden(place.ids.to(device), mask=mask, positions=place.positions.to(device), media=media)
    return hidden.flatten(0, 1)[place.at.to(device)]
