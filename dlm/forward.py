"""What the model says at the positions of completions, some of them shown as masks. Axes: n rows, l completion
positions, p prompt tokens, d width.

Full attention: one canvas a row. Block attention: packed pairs [prompt, completion | noisy copy], in which a noisy
block sees the clean blocks before it, so that all blocks are read in one forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlm.canvas import Canvas, layout
from dlm.columns import Columns, packed_hidden, padded_hidden
from dlm.models.base import MaskedLM
from dlm.rows import Row
from dlm.shared import shared_hidden


def columns(rows: Sequence[Row], block: int | None) -> int:
    """Padded columns of one row in a batch of these: what one forward costs. `block`: of block attention, or None."""
    longest = max(len(r.prompt) for r in rows)
    canvas = max(len(r) for r in rows)
    return longest + canvas if block is None else longest + 2 * (canvas + block)


def completion_hidden(
    model: MaskedLM,
    rows: Sequence[Row],
    *,
    masked_nl: Tensor,
    prompt_masked_np: Tensor | None,
    guidance: float = 0.0,
    packed: bool = False,
) -> Tensor:
    """Hidden states [n, l, d] that predict the completions' tokens, l = columns of `masked_nl`; zeros beyond a row.

    guidance s: those of (s + 1) * conditional - s * unconditional logits, the latter with the whole prompt masked. The
    output layer is affine and the factors add up to 1, so mixing hidden states is mixing logits.
    packed: rows side by side in one sequence, each seeing itself only, instead of padded to the longest.
    """
    hidden = _run(model, rows, masked_nl, prompt_masked_np, packed)
    if guidance == 0:
        return hidden
    everything = torch.ones(len(rows), max(len(r.prompt) for r in rows), dtype=torch.bool)
    return hidden + guidance * (hidden - _run(model, rows, masked_nl, everything, packed))


def _run(
    model: MaskedLM, rows: Sequence[Row], masked_nl: Tensor, prompt_masked_np: Tensor | None, packed: bool
) -> Tensor:
    traits = model.traits
    grid = traits.block if traits.attention == "block" else None
    prompts, limits = [r.prompt for r in rows], [len(r) for r in rows]
    canvas = layout(prompts, limits, traits, block=grid or 1, fill=[r.ids for r in rows])
    at_nl, inside_nl = _completion_columns(canvas, limits, masked_nl.shape[1])
    hide = torch.zeros_like(canvas.valid_nl)
    if prompt_masked_np is not None:  # in the clean copy too: it is the prompt that is not known
        start_n = canvas.prefix + canvas.tail_n - torch.tensor([len(p) for p in prompts])
        column_np = start_n[:, None] + torch.arange(prompt_masked_np.shape[1])
        real_np = torch.arange(prompt_masked_np.shape[1]) < torch.tensor([len(p) for p in prompts])[:, None]
        rows_at, at = (prompt_masked_np & real_np).nonzero(as_tuple=True)
        hide[rows_at, column_np[rows_at, at]] = True
    clean = canvas.ids_nl.masked_fill(hide, traits.mask_id)
    rows_at, at = (masked_nl & inside_nl).nonzero(as_tuple=True)
    hide[rows_at, at_nl[rows_at, at]] = True
    seen = canvas.ids_nl.masked_fill(hide, traits.mask_id)
    noisy = torch.ones_like(hide)
    shown = Columns(seen, canvas.valid_nl, canvas.positions_nl, noisy)
    if grid is not None:
        f, width = canvas.prefix, seen.shape[1]
        first = Columns(clean, canvas.valid_nl, canvas.positions_nl, ~noisy)
        copy = Columns(seen[:, f:], canvas.valid_nl[:, f:], canvas.positions_nl[:, f:], noisy[:, f:])
        one_of, row_m = _different(rows)
        if len(one_of) < len(rows) and prompt_masked_np is None and not packed and not recomputes(model):
            hidden = shared_hidden(model, first.of(one_of), copy, row_m, grid)
            return _gathered(hidden, at_nl - f, inside_nl)
        shown = first.beside(copy)
        at_nl = at_nl + width - f  # of the noisy copy
    hidden = (packed_hidden if packed else padded_hidden)(model, shown, grid)
    return _gathered(hidden, at_nl, inside_nl)


def recomputes(model: MaskedLM) -> bool:
    """Gradient checkpointing is on, which keeps no keys and values."""
    return bool(getattr(model, "checkpointing", False))


def _different(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """(index of the first of each different row, which of these every row is)."""
    number: dict[int, int] = {}
    first: list[int] = []
    for i, row in enumerate(rows):
        if id(row) not in number:
            number[id(row)] = len(first)
            first.append(i)
    return torch.tensor(first), torch.tensor([number[id(row)] for row in rows])


def _gathered(hidden: Tensor, at_nl: Tensor, inside_nl: Tensor) -> Tensor:
    """The states of the completions' columns, zeros beyond a row."""
    # rows beyond their end read a harmless column
    at_nl = torch.where(inside_nl, at_nl, 0).to(hidden.device)
    found = hidden.gather(1, at_nl[:, :, None].expand(-1, -1, hidden.shape[-1]))
    return torch.where(inside_nl.to(hidden.device)[:, :, None], found, torch.zeros_like(found))


def _completion_columns(canvas: Canvas, limits: list[int], width: int) -> tuple[Tensor, Tensor]:
    """Column of every completion position [n, l] (the last one beyond a row's end), l = width, and whether it is
    real."""
    order = torch.arange(width)
    inside = order < torch.tensor(limits)[:, None]
    at = canvas.prefix + canvas.tail_n[:, None] + order
    return torch.where(inside, at, canvas.ids_nl.shape[1] - 1), inside
