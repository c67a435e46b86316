"""From hidden states to log-probabilities of chosen tokens, a chunk of positions at a time.

A table of logits over all positions never exists. Axes: M positions, V vocabulary, d width, n rows, c columns.

The distribution is the sampler's: logits / temperature, suppressed ids removed, and, where the sampler cut the tail
off (top-p / top-k), renormalised over the ids it kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mmrl.vlm.rows import Kept


@dataclass
class Head:
    """The output layer as numbers: weight [V, d], optional bias [V], `forbidden` [V] = -inf at suppressed ids, else 0.

    `dtype` is that of the matrix product (bfloat16 under autocast); everything after it is float32 or better.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    forbidden: torch.Tensor
    dtype: torch.dtype

    @property
    def arithmetic(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def raw(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits as the model gives them, [..., V]."""
        bias = None if self.bias is None else self.bias.to(self.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(self.dtype), self.weight.to(self.dtype), bias).to(self.arithmetic)


@dataclass
class Choice:
    """What was chosen at each of M positions: ids [M], temperature [M], kept ids (flat) and how many, counts [M]."""

    ids: torch.Tensor
    temperature: torch.Tensor
    kept_ids: torch.Tensor | None = None
    kept_counts: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def chunks(self, size: int) -> list[tuple[int, int, Choice]]:
        """(start, stop, part) over all positions."""
        ends = None if self.kept_counts is None else F.pad(self.kept_counts.cumsum(0), (1, 0)).tolist()
        parts = []
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            kept = counts = None
            if self.kept_ids is not None and self.kept_counts is not None and ends is not None:
                kept, counts = self.kept_ids[ends[start] : ends[stop]], self.kept_counts[start:stop]
            parts.append((start, stop, Choice(self.ids[start:stop], self.temperature[start:stop], kept, counts)))
        return parts


def choice(
    ids_nr: torch.Tensor, mask_nr: torch.Tensor, temperature_n: torch.Tensor, kept: Sequence[Kept | None]
) -> Choice:
    """The chosen tokens of a padded block, real positions only, row after row.

    Rows without kept ids stand beside rows with them: a count of -1 means that nothing was cut off.
    """
    temperature = temperature_n[:, None].expand_as(ids_nr)[mask_nr]
    if all(k is None for k in kept):
        return Choice(ids_nr[mask_nr], temperature)
    device = ids_nr.device
    lengths = mask_nr.sum(1).tolist()
    counts = torch.cat([torch.zeros(n, dtype=torch.long) if k is None else k.counts for k, n in zip(kept, lengths)])
    flat = torch.cat([k.ids for k in kept if k is not None])
    return Choice(ids_nr[mask_nr], temperature, flat.to(device), counts.to(device))


def _scaled(head: Head, hidden: torch.Tensor, part: Choice) -> torch.Tensor:
    """Logits [m, V] of the sampler's distribution; -inf where a token could not be drawn."""
    logits = head.raw(hidden) / part.temperature[:, None].to(head.arithmetic) + head.forbidden
    if part.kept_ids is None or part.kept_counts is None:
        return logits
    allowed = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    at = torch.repeat_interleave(torch.arange(len(part), device=logits.device), part.kept_counts)
    allowed[at, part.kept_ids] = True
    allowed |= (part.kept_counts == 0)[:, None]
    return logits.masked_fill(~allowed, float("-inf"))


def _statistics(logits: torch.Tensor, ids: torch.Tensor, entropy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """log-probability of `ids` [m] and entropy [m] (empty unless wanted)."""
    logp_mv = torch.log_softmax(logits, -1)
    logp = logp_mv.gather(1, ids[:, None])[:, 0]
    if not entropy:
        return logp, logp.new_zeros(0)
    finite = logp_mv.masked_fill(logp_mv == float("-inf"), 0.0)  # 0 * -inf would be NaN
    return logp, -(logp_mv.exp() * finite).sum(-1)


class _Chunked(torch.autograd.Function):
    """log-probabilities and entropies by chunks; the backward pass recomputes a chunk's logits.

    Alive at once: the logits of one chunk. A frozen weight gets no gradient computed.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        head: Head,
        chosen: Choice,
        size: int,
        entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.head, ctx.chosen, ctx.size, ctx.entropy = head, chosen, size, entropy
        out = [_statistics(_scaled(head, hidden[a:b], part), part.ids, entropy) for a, b, part in chosen.chunks(size)]
        return torch.cat([o[0] for o in out]), torch.cat([o[1] for o in out])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_logp: torch.Tensor, grad_entropy: torch.Tensor) -> Any:
        hidden, weight, bias = ctx.saved_tensors
        head: Head = ctx.head
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight, dtype=head.arithmetic) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(bias, dtype=head.arithmetic) if ctx.needs_input_grad[2] else None
        for a, b, part in ctx.chosen.chunks(ctx.size):
            logp_mv = torch.log_softmax(_scaled(head, hidden[a:b], part), -1)
            p_mv = logp_mv.exp()
            to_logits = -grad_logp[a:b, None] * p_mv
            to_logits.scatter_add_(1, part.ids[:, None], grad_logp[a:b, None])
            if ctx.entropy:
                finite = logp_mv.masked_fill(logp_mv == float("-inf"), 0.0)
                h_m1 = -(p_mv * finite).sum(-1, keepdim=True)
                to_logits -= grad_entropy[a:b, None] * p_mv * (finite + h_m1)
            to_logits /= part.temperature[:, None].to(to_logits.dtype)
            product = to_logits.to(head.dtype)
            if to_hidden is not None:
                to_hidden[a:b] = (product @ weight.to(head.dtype)).to(hidden.dtype)
            if to_weight is not None:
                to_weight += product.T @ hidden[a:b].to(head.dtype)
            if to_bias is not None:
                to_bias += to_logits.sum(0)
        cast_weight = None if to_weight is None else to_weight.to(weight.dtype)
        cast_bias = None if to_bias is None else to_bias.to(bias.dtype)
        return to_hidden, cast_weight, cast_bias, None, None, None, None


def score(
    hidden_md: torch.Tensor, head: Head, chosen: Choice, *, size: int, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """log-probabilities [M] of the chosen ids and entropies [M] (empty unless `entropy`).

    At most `size` positions have logits at once. One chunk is left to autograd, which then need not recompute it.
    """
    if len(chosen) <= size:
        return _statistics(_scaled(head, hidden_md, chosen), chosen.ids, entropy)
    out: tuple[torch.Tensor, torch.Tensor] = _Chunked.apply(  # type: ignore[no-untyped-call]
        hidden_md, head.weight, head.bias, head, chosen, size, entropy
    )
    return out


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
