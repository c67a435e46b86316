"""The fast form of `mmrl.core.head.score`: blocks of positions times blocks of the vocabulary, in one reused buffer.

With z the logits of the sampler's distribution, top = max z, s = sum exp(z - top), p = exp(z - top) / s, T the
temperature, H the entropy and y the chosen id:

    d logp_y / d hidden = (W_y - sum_v p_v W_v) / T
    d H / d hidden      = - sum_v p_v (log p_v + H) W_v / T

The first is a sum over the vocabulary like s itself, so a running maximum carries both through the blocks. Where the
head is frozen it is taken along in the forward pass, and backward only scales it: two matrix products in all. Where the
head trains, its gradient needs the incoming one, and backward makes the logits again: four products instead of the
three of a whole table, which still takes less time, because a block never leaves the cache.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmrl.core.head import LOW, Choice, Head

#: Logits in one block: few enough for the cache of a CPU, enough to keep a GPU busy.
ON_CPU, ELSEWHERE = 1 << 20, 1 << 25
#: Marks of ids that were not cut off [positions, V] that live at once, bytes.
MARKS = 1 << 24


@dataclass
class _Block:
    """Logits z of the ids first..last and their rows of the weight.

    at [m, 1]: the column of the chosen id; only where `here` [m, 1], for it may lie in another block.
    """

    z: Tensor
    weight: Tensor
    first: int
    last: int
    at: Tensor
    here: Tensor

    def put(self, values: Tensor, at_chosen: Tensor) -> Tensor:
        """`values` [m, ids] with `at_chosen` [m, 1] at the chosen ids, in place."""
        return values.scatter_(1, self.at, torch.where(self.here, at_chosen, values.gather(1, self.at)))


class _Walk:
    """Logits block by block, always in the same buffer: a caller may overwrite a block, and must not keep it."""

    def __init__(self, head: Head, hidden: Tensor, chosen: Choice, size: int) -> None:
        self.head, self.hidden, self.chosen = head, hidden, chosen
        self.vocabulary = head.weight.shape[0]
        self.rows = min(size, len(chosen))
        if chosen.kept_ids is not None:
            self.rows = min(self.rows, max(1, MARKS // self.vocabulary))
        block = ON_CPU if hidden.device.type == "cpu" else ELSEWHERE
        self.columns = min(self.vocabulary, max(512, block // self.rows))
        self.buffer = hidden.new_empty(self.rows * self.columns, dtype=head.arithmetic)
        self.forbidden = torch.isinf(head.forbidden).nonzero()[:, 0]
        self.forbidden_ids: list[int] = self.forbidden.tolist()

    def chunks(self) -> list[tuple[int, int, Choice]]:
        return self.chosen.chunks(self.rows)

    def blocks(self, start: int, stop: int, part: Choice) -> Iterator[_Block]:
        """The blocks of positions start..stop, from the first id to the last."""
        hidden = self.hidden[start:stop].to(self.head.dtype)
        temperature = part.temperature[:, None].to(self.head.arithmetic)
        allowed = part.allowed(self.vocabulary)
        for first in range(0, self.vocabulary, self.columns):
            last = min(first + self.columns, self.vocabulary)
            weight = self.head.weight[first:last].to(self.head.dtype)
            z = self._logits(hidden, weight, first, last).div_(temperature)
            low, high = bisect_left(self.forbidden_ids, first), bisect_left(self.forbidden_ids, last)
            if low < high:
                z.index_fill_(1, self.forbidden[low:high] - first, LOW)
            if allowed is not None:
                z.masked_fill_(~allowed[:, first:last], LOW)
            here = (part.ids >= first) & (part.ids < last)
            at = (part.ids - first).clamp(0, last - first - 1)
            yield _Block(z, weight, first, last, at[:, None], here[:, None])

    def _logits(self, hidden: Tensor, weight: Tensor, first: int, last: int) -> Tensor:
        head = self.head
        z = self.buffer[: len(hidden) * (last - first)].view(len(hidden), last - first)
        bias = None if head.bias is None else head.bias[first:last].to(head.dtype)
        if head.dtype != head.arithmetic:
            return z.copy_(F.linear(hidden, weight, bias))
        torch.mm(hidden, weight.T, out=z)
        return z if bias is None else z.add_(bias)


class _Sums:
    """What the blocks of m positions add up to. Each is [m, 1], `weighted` [m, d].

    top: maximum of z. total: sum of exp(z - top). product: sum of exp(z - top) (z - top). picked: z of the chosen id.
    weighted: sum of exp(z - top) W over all other ids.
    """

    def __init__(self, like: Tensor, width: int | None) -> None:
        """Of no block yet; without `weighted` where `width` is None."""
        self.top = torch.full_like(like, LOW)
        self.total, self.product, self.picked = (torch.zeros_like(like) for _ in range(3))
        self.weighted = None if width is None else like.new_zeros(len(like), width)

    def add(self, block: _Block, *, entropy: bool) -> None:
        """One more block, which is overwritten.

        A block without any id that can be drawn adds junk, which the first real maximum multiplies by exactly 0.
        """
        z = block.z
        self.picked = torch.where(block.here, z.gather(1, block.at), self.picked)
        top = torch.maximum(self.top, z.amax(1, keepdim=True))
        drop = self.top - top
        fade = drop.exp()
        z.sub_(top)
        logs = z.clone() if entropy else None
        z.exp_()
        if logs is not None:
            self.product = (self.product + self.total * drop) * fade + logs.mul_(z).sum(1, keepdim=True)
        self.total = self.total * fade + z.sum(1, keepdim=True)
        self.top = top
        if self.weighted is not None:
            _add_product(self.weighted.mul_(fade), block.put(z, torch.zeros_like(top)), block.weight)

    def logp(self) -> Tensor:
        """[m, 1]; -inf where the chosen id cannot be drawn."""
        return (self.picked - self.top - self.total.log()).masked_fill_(self.picked == LOW, float("-inf"))

    def entropy(self) -> Tensor:
        return self.total.log() - self.product / self.total


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b. The product is in the dtype of `b` (bfloat16 under autocast), the sum in that of `out`."""
    if a.dtype == b.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out.add_(a.to(b.dtype) @ b)


def _forward(
    walk: _Walk, start: int, stop: int, part: Choice, *, entropy: bool, slope: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log-probability, entropy, top and total, each [m, 1], and d logp / d hidden [m, d]; [m, 0] where not wanted."""
    temperature = part.temperature[:, None].to(walk.head.arithmetic)
    sums = _Sums(temperature, walk.hidden.shape[1] if slope else None)
    for block in walk.blocks(start, stop, part):
        sums.add(block, entropy=entropy)
    logp, none = sums.logp(), temperature[:, :0]
    along = none
    if sums.weighted is not None:
        chosen = walk.head.weight[part.ids].to(walk.head.dtype)
        # 1 - p without the difference of two sums: exact where p is close to 1
        along = (-logp.expm1() * chosen - sums.weighted / sums.total) / temperature
    return logp, sums.entropy() if entropy else none, sums.top, sums.total, along


@dataclass
class _Incoming:
    """Gradients of some positions, each [m, 1] or None (not both), and what forward kept of them, [m, 1] each."""

    to_logp: Tensor | None
    to_entropy: Tensor | None
    logp: Tensor
    entropy: Tensor
    top: Tensor
    total: Tensor

    def rows(self, start: int, stop: int) -> _Incoming:
        fields = (self.to_logp, self.to_entropy, self.logp, self.entropy, self.top, self.total)
        return _Incoming(*(None if f is None else f[start:stop] for f in fields))  # type: ignore[arg-type]

    def factor(self) -> Tensor:
        """What turns `coefficients` into the gradient of the logits: -1 / total, and a gradient that comes alone."""
        if self.to_logp is not None and self.to_entropy is not None:
            return -1 / self.total
        alone = self.to_entropy if self.to_logp is None else self.to_logp
        assert alone is not None
        return -alone / self.total

    def coefficients(self, block: _Block) -> Tensor:
        """exp(z - top), total * (p - 1) at the chosen id; for the entropy exp(z - top) (log p + H). Overwrites z."""
        z = block.z.sub_(self.top)
        at_chosen = self.logp.expm1() * self.total
        if self.to_entropy is None:
            return block.put(z.exp_(), at_chosen)
        exponential = z.exp()
        spread = z.add_(self.entropy - self.total.log()).mul_(exponential)
        if self.to_logp is None:
            return spread
        return spread.mul_(self.to_entropy).addcmul_(block.put(exponential, at_chosen), self.to_logp)


class _Gradients:
    """Gradients of hidden, weight and bias, summed over positions; None where not needed."""

    def __init__(self, walk: _Walk, needs: tuple[bool, ...]) -> None:
        head, dtype = walk.head, walk.head.arithmetic
        self.walk = walk
        self.hidden = torch.zeros_like(walk.hidden, dtype=dtype) if needs[0] else None
        self.weight = torch.zeros_like(head.weight, dtype=dtype) if needs[1] else None
        self.bias = torch.zeros_like(head.bias, dtype=dtype) if needs[2] and head.bias is not None else None

    def add(self, start: int, stop: int, part: Choice, incoming: _Incoming) -> None:
        """The share of positions start..stop."""
        factor = incoming.factor() / part.temperature[:, None].to(incoming.total.dtype)
        scaled = (self.walk.hidden[start:stop] * factor).to(self.walk.head.dtype)
        hidden = None if self.hidden is None else self.hidden[start:stop]
        for block in self.walk.blocks(start, stop, part):
            coefficients = incoming.coefficients(block)
            if hidden is not None:
                _add_product(hidden, coefficients, block.weight)
            if self.weight is not None:
                _add_product(self.weight[block.first : block.last], coefficients.T, scaled)
            if self.bias is not None:
                self.bias[block.first : block.last].addmv_(coefficients.T, factor[:, 0])
        if hidden is not None:
            hidden.mul_(factor)


class Blocks(torch.autograd.Function):
    """log-probabilities [M] and entropies [M] (empty unless wanted), differentiable once."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        chosen: Choice,
        size: int,
        entropy: bool,
        grad: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # an entropy that is only watched costs nothing in backward
        to_hidden, *to_head = ctx.needs_input_grad[:3]
        ctx.slope = grad and to_hidden and not any(to_head)
        with torch.autocast(hidden.device.type, enabled=False):
            walk = _Walk(head, hidden, chosen, size)
            parts = [_forward(walk, *chunk, entropy=entropy, slope=ctx.slope) for chunk in walk.chunks()]
        logp, h, top, total, slope = (torch.cat(p) for p in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, bias, logp, h, top, total, slope)
        ctx.forbidden, ctx.dtype, ctx.chosen, ctx.size = head.forbidden, head.dtype, chosen, size
        return logp[:, 0].clone(), h[:, 0].clone() if entropy else h.new_zeros(0)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None) -> Any:
        hidden, weight, bias, logp, h, top, total, slope = ctx.saved_tensors
        to_logp = None if grad_logp is None else grad_logp[:, None]
        to_entropy = grad_entropy[:, None] if grad_entropy is not None and grad_entropy.numel() else None
        if ctx.slope and to_logp is not None and to_entropy is None:
            return ((slope * to_logp).to(hidden.dtype), *(None,) * 7)
        with torch.autocast(hidden.device.type, enabled=False):
            walk = _Walk(Head(weight, bias, ctx.forbidden, ctx.dtype), hidden, ctx.chosen, ctx.size)
            gradients = _Gradients(walk, ctx.needs_input_grad[:3])
            if to_logp is not None or to_entropy is not None:
                incoming = _Incoming(to_logp, to_entropy, logp, h, top, total)
                for a, b, part in walk.chunks():
                    gradients.add(a, b, part, incoming.rows(a, b))
        pairs = ((gradients.hidden, hidden), (gradients.weight, weight), (gradients.bias, bias))
        return (*(None if g is None else g.to(like.dtype) for g, like in pairs), *(None,) * 5)
