"""Shared prefix `off`: every row carries its own copy of the prompt and its pictures. The reference of the fast forms.

Axes: n rows, P prompt positions, R completion positions, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmrl.vlm.adapters import Shape
from mmrl.vlm.encode import Prompt
from mmrl.vlm.rows import Completions, Row


def completion_hidden(shape: Shape, rows: Sequence[Row], completions: Completions) -> torch.Tensor:
    """Hidden states [n, R, d] that predict the tokens of the rows, from n independent sequences padded on the right."""
    device = shape.device
    prompts: list[Prompt] = [row.prompt for row in rows]
    starts = torch.tensor([len(p) for p in prompts])
    lengths = starts + completions.lengths.cpu() - 1  # the last token predicts nothing
    width = int(lengths.max())
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(3, len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        start, stop = int(starts[i]), int(lengths[i])
        ids[i, :start], ids[i, start:stop] = row.prompt.ids, row.ids[:-1]
        positions[:, i, :start] = row.prompt.positions
        positions[:, i, start:stop] = row.prompt.next_position + torch.arange(stop - start)
    names = sorted({k for p in prompts for k in p.media})
    media = {k: torch.cat([p.media[k] for p in prompts if k in p.media]).to(device) for k in names}
    mask = (torch.arange(width) < lengths[:, None]).to(device)
    hidden = shape.hidden(ids.to(device), mask=mask, positions=positions.to(device), media=media)
    at = starts.to(device)[:, None] - 1 + torch.arange(completions.ids.shape[1], device=device)
    at = at.clamp(max=width - 1)[..., None].expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, at)
