"""The output layer of this family: the chosen tokens of a padded block, and logit reducers over its columns.

Log-probabilities themselves are family-independent: `mmrl.core.head`. Axes: n rows, r and c columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from mmrl.core.head import Choice, Head, score
from mmrl.core.reducers import constant
from mmrl.vlm.rows import Kept

__all__ = ["Choice", "Head", "choice", "reduce_logits", "score"]

Reducers = dict[str, Callable[..., torch.Tensor]]

#: Logits that a reducer without gradient is shown at once: enough rows for a fast product with the head.
BLOCK_ON_CPU, BLOCK_ELSEWHERE = 1 << 23, 1 << 26


def choice(
    ids_nr: torch.Tensor, mask_nr: torch.Tensor, temperature_n: torch.Tensor, kept: Sequence[Kept | None]
) -> Choice:
    """The chosen tokens of a padded block, real positions only, row after row.

    Rows without kept ids stand beside rows with them: a count of 0 means that nothing was cut off.
    """
    temperature = temperature_n[:, None].expand_as(ids_nr)[mask_nr]
    if all(k is None for k in kept):
        return Choice(ids_nr[mask_nr], temperature)
    device = ids_nr.device
    lengths = mask_nr.sum(1).tolist()
    counts = torch.cat([torch.zeros(n, dtype=torch.long) if k is None else k.counts for k, n in zip(kept, lengths)])
    flat = torch.cat([k.ids for k in kept if k is not None])
    return Choice(ids_nr[mask_nr], temperature, flat.to(device), counts.to(device))


def reduce_logits(
    hidden_nrd: torch.Tensor,
    head: Head,
    reducers: Reducers,
    context: dict[str, torch.Tensor],
    *,
    size: int,
) -> dict[str, torch.Tensor]:
    """Run logit reducers over columns, all rows of the piece in each chunk; [n, R] per reducer.

    A reducer sees the model's own logits (temperature 1; suppressed ids at a large negative finite value, so that
    p * log p stays finite), the hidden states, and by keyword the entries of `context`, of which those with names
    ending in `_nc` are cut to the chunk. Chunks hold at most `size` positions. Where a gradient is wanted they are
    checkpointed: backward recomputes them. Reducers of constant channels run once, without a graph, on smaller chunks;
    they see logits of 0 where `mask_nc` of the context is False.
    """
    fixed = {name: f for name, f in reducers.items() if constant(name)}
    moving = {name: f for name, f in reducers.items() if name not in fixed}
    out = _walk(_checkpointed, hidden_nrd, head, moving, context, columns=max(1, size // len(hidden_nrd)))
    with torch.no_grad():
        block = BLOCK_ON_CPU if hidden_nrd.device.type == "cpu" else BLOCK_ELSEWHERE
        columns = max(1, min(size, block // head.weight.shape[0]) // len(hidden_nrd))
        layer = replace(head, weight=head.weight.to(head.dtype)) if fixed else head  # once, not in every chunk
        return out | _walk(_plainly, hidden_nrd.detach(), layer, fixed, context, columns=columns)


def _walk(
    run: Callable[[torch.Tensor, Head, Reducers, dict[str, torch.Tensor]], list[torch.Tensor]],
    hidden_nrd: torch.Tensor,
    head: Head,
    reducers: Reducers,
    context: dict[str, torch.Tensor],
    *,
    columns: int,
) -> dict[str, torch.Tensor]:
    """`run` on every chunk of so many columns, put together."""
    if not reducers:
        return {}
    width = hidden_nrd.shape[1]
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in reducers}
    for start in range(0, width, columns):
        stop = min(start + columns, width)
        at = {k: v[:, start:stop] if k.endswith("_nc") else v for k, v in context.items()}
        at["columns_c"] = torch.arange(start, stop, device=hidden_nrd.device)
        chunk = hidden_nrd[:, start:stop]
        for name, value in zip(reducers, run(chunk, head, reducers, at), strict=True):
            if value.shape != chunk.shape[:2]:
                raise ValueError(
                    f"reducer for {name}: expected shape {tuple(chunk.shape[:2])}, got {tuple(value.shape)}"
                )
            parts[name].append(value)
    return {name: torch.cat(values, 1) for name, values in parts.items()}


def _checkpointed(
    chunk: torch.Tensor, head: Head, reducers: Reducers, at: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    from torch.utils.checkpoint import checkpoint

    low = head.forbidden.clamp(min=-1e9)

    def run(hidden_ncd: torch.Tensor) -> list[torch.Tensor]:
        logits_ncv = head.raw(hidden_ncd) + low
        return [f(logits_ncv, hidden_ncd, **_wanted(f, at)) for f in reducers.values()]

    return checkpoint(run, chunk, use_reentrant=False) if torch.is_grad_enabled() else run(chunk)  # type: ignore[no-any-return]


def _plainly(chunk: torch.Tensor, head: Head, reducers: Reducers, at: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Rows that have ended cost no product with the head."""
    low = head.forbidden.clamp(min=-1e9)
    mask = at.get("mask_nc")
    if mask is None or bool(mask.all()):
        flat = head.raw(chunk.flatten(0, 1)).add_(low)  # one product, not one a row
        logits_ncv = flat.view(*chunk.shape[:2], len(low))
    else:
        logits_ncv = torch.zeros(*chunk.shape[:2], len(low), dtype=head.arithmetic, device=chunk.device)
        logits_ncv[mask] = head.raw(chunk[mask]).add_(low)
    return [f(logits_ncv, chunk, **_wanted(f, at)) for f in reducers.values()]


def _wanted(function: Callable[..., torch.Tensor], context: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The context entries that `function` names, or all if it takes **kwargs."""
    import inspect

    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return context
    return {p.name: context[p.name] for p in parameters if p.name in context}
