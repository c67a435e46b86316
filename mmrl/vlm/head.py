"""The output layer of this family: the chosen tokens of a padded block, and logit reducers over its columns.

Log-probabilities themselves are family-independent: `mmrl.core.head`. Axes: n rows, r and c columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mmrl.core.head import Choice, Head, score
from mmrl.vlm.rows import Kept

__all__ = ["Choice", "Head", "choice", "reduce_logits", "score"]


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
    reducers: dict[str, Callable[..., torch.Tensor]],
    context: dict[str, torch.Tensor],
    *,
    size: int,
) -> dict[str, torch.Tensor]:
    """Run logit reducers over columns, all rows of the piece in each chunk; [n, R] per reducer.

    A reducer sees the model's own logits (temperature 1; suppressed ids at a large negative finite value, so that
    p * log p stays finite), the hidden states, and by keyword the entries of `context`, of which those with names
    ending in `_nc` are cut to the chunk. Chunks are checkpointed: backward recomputes them.
    """
    from torch.utils.checkpoint import checkpoint

    n, width, _ = hidden_nrd.shape
    columns = max(1, size // n)
    low = head.forbidden.clamp(min=-1e9)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in reducers}
    for start in range(0, width, columns):
        stop = min(start + columns, width)
        at = {k: v[:, start:stop] if k.endswith("_nc") else v for k, v in context.items()}
        at["columns_c"] = torch.arange(start, stop, device=hidden_nrd.device)

        def run(hidden_ncd: torch.Tensor, at: dict[str, torch.Tensor] = at) -> list[torch.Tensor]:
            logits_ncv = head.raw(hidden_ncd) + low
            return [f(logits_ncv, hidden_ncd, **_wanted(f, at)) for f in reducers.values()]

        chunk = hidden_nrd[:, start:stop]
        values = checkpoint(run, chunk, use_reentrant=False) if torch.is_grad_enabled() else run(chunk)
        for name, value in zip(reducers, values, strict=True):
            if value.shape != chunk.shape[:2]:
                raise ValueError(
                    f"reducer for {name}: expected shape {tuple(chunk.shape[:2])}, got {tuple(value.shape)}"
                )
            parts[name].append(value)
    return {name: torch.cat(values, 1) for name, values in parts.items()}


def _wanted(function: Callable[..., torch.Tensor], context: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The context entries that `function` names, or all if it takes **kwargs."""
    import inspect

    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return context
    return {p.name: context[p.name] for p in parameters if p.name in context}
