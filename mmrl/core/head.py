"""The output layer as numbers: log-probabilities and entropies of chosen tokens, without a table of all logits.

The distribution is the sampler's: logits / temperature, suppressed ids removed, and, where the sampler cut the tail
off (top-p / top-k), renormalised over the ids it kept. Axes: M positions, V vocabulary, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: What a logit is set to where a token cannot be drawn: its probability is exactly 0, and 0 times it is not NaN.
LOW = -1e20


@dataclass
class Head:
    """The output layer as numbers: weight [V, d], optional bias [V], `forbidden` [V] = -inf at suppressed ids, else 0.

    `dtype` is that of the matrix product (bfloat16 under autocast); everything after it is float32 or better.
    """

    weight: Tensor
    bias: Tensor | None
    forbidden: Tensor
    dtype: torch.dtype

    @property
    def arithmetic(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def raw(self, hidden: Tensor) -> Tensor:
        """Logits as the model gives them, [..., V]."""
        bias = None if self.bias is None else self.bias.to(self.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(self.dtype), self.weight.to(self.dtype), bias).to(self.arithmetic)


@dataclass
class Choice:
    """What was chosen at each of M positions: ids [M], temperature [M], kept ids (flat) and how many, counts [M].

    A count of 0 means that nothing was cut off at that position.
    """

    ids: Tensor
    temperature: Tensor
    kept_ids: Tensor | None = None
    kept_counts: Tensor | None = None

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

    def allowed(self, width: int) -> Tensor | None:
        """True where a token could be drawn, [M, V]; None where nothing was cut off."""
        if self.kept_ids is None or self.kept_counts is None:
            return None
        mask = torch.zeros(len(self), width, dtype=torch.bool, device=self.ids.device)
        at = torch.repeat_interleave(torch.arange(len(self), device=self.ids.device), self.kept_counts)
        mask[at, self.kept_ids] = True
        return mask | (self.kept_counts == 0)[:, None]


def score_plainly(hidden_md: Tensor, head: Head, chosen: Choice, *, entropy: bool = False) -> tuple[Tensor, Tensor]:
    """`score` from a whole table of logits, left to autograd: what the fast form is tested against."""
    logits = head.raw(hidden_md) / chosen.temperature[:, None].to(head.arithmetic) + head.forbidden
    allowed = chosen.allowed(logits.shape[1])
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    logp_mv = torch.log_softmax(logits, -1)
    logp = logp_mv.gather(1, chosen.ids[:, None])[:, 0]
    if not entropy:
        return logp, logp.new_zeros(0)
    finite = logp_mv.masked_fill(logp_mv == float("-inf"), 0.0)  # 0 * -inf would be NaN
    return logp, -(logp_mv.exp() * finite).sum(-1)


def score(hidden_md: Tensor, head: Head, chosen: Choice, *, size: int, entropy: bool = False) -> tuple[Tensor, Tensor]:
    """log-probabilities [M] of the chosen ids and entropies [M] (empty unless `entropy`).

    At most `size` positions have logits at once, and of those a block of the vocabulary. Differentiable once in hidden,
    weight and bias.
    """
    from mmrl.core.head_blocks import Blocks  # which imports this module

    if not len(chosen):
        empty = hidden_md.sum() * 0 + hidden_md.new_zeros(0, dtype=head.arithmetic)
        return empty, empty
    out: tuple[Tensor, Tensor] = Blocks.apply(  # type: ignore[no-untyped-call]
        hidden_md, head.weight, head.bias, head, chosen, size, entropy, torch.is_grad_enabled()
    )
    return out
