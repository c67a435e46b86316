"""A token, its log-probability, its confidence and its key of order for masked positions. Axes: m positions, v ids.

Logits exist for `size` positions at a time, and only for positions that are masked, in the block being decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.sampling import noise, orders
from dlm.sampling.guidance import guided
from dlm.sampling.settings import Settings
from mmrl.core.head import Head
from mmrl.errors import UserError

#: Logits divided by less can overflow float32.
TINY = 1e-30


@dataclass
class Drawn:
    """Everything [m]; `keep` bool [m, v]: ids that top-k / top-p left, None when nothing was cut off."""

    ids: Tensor
    logp: Tensor
    confidence: Tensor
    key: Tensor
    keep: Tensor | None

    @staticmethod
    def join(parts: list[Drawn]) -> Drawn:
        keeps = [p.keep for p in parts if p.keep is not None]
        return Drawn(
            torch.cat([p.ids for p in parts]),
            torch.cat([p.logp for p in parts]),
            torch.cat([p.confidence for p in parts]),
            torch.cat([p.key for p in parts]),
            torch.cat(keeps) if keeps else None,
        )


@dataclass(frozen=True)
class Drawer:
    """forbidden [v]: -inf at ids that are never drawn and have no part in any probability.

    confidence_of   model | sampled, see `Settings.confidence`.
    """

    head: Head
    forbidden: Tensor
    settings: Settings
    confidence_of: str
    size: int

    def __call__(self, hidden: list[Tensor], uniform_2m: Tensor | None, column_m: Tensor) -> Drawn:
        """hidden: states [m, d], and with guidance those without the prompt. uniform_2m: for tokens and for order.

        Raises UserError when a logit is NaN or +inf; that is looked at once, after the last position.
        """
        parts = []
        for start in range(0, len(column_m), self.size):
            at = slice(start, start + self.size)
            logits = self._logits([h[at] for h in hidden])
            parts.append(self._draw(logits, None if uniform_2m is None else uniform_2m[:, at], column_m[at]))
        drawn = Drawn.join(parts)
        # one NaN or +inf makes every probability of its position NaN, that of the token drawn too
        if not bool(torch.isfinite(drawn.logp).all()):
            raise UserError(not_finite(self.settings))
        return drawn

    def _logits(self, hidden: list[Tensor]) -> Tensor:
        logits = self.head.raw(hidden[0])
        if len(hidden) == 2:
            logits = guided(logits, self.head.raw(hidden[1]), self.settings.guidance)
        return logits + self.forbidden

    def _draw(self, logits_mv: Tensor, uniform_2m: Tensor | None, column_m: Tensor) -> Drawn:
        settings = self.settings
        tempered, keep = logits_mv / settings.tempered, None
        if settings.cuts:
            keep = noise.allowed(tempered, top_p=settings.top_p, top_k=settings.top_k)
            tempered = tempered.masked_fill(~keep, float("-inf"))
        if settings.takes_best:
            ids = logits_mv.argmax(-1)
        else:
            assert uniform_2m is not None
            ids = noise.pick(tempered, uniform_2m[0])
        logp_mv = torch.log_softmax(tempered, -1)
        logp = logp_mv.gather(1, ids[:, None])[:, 0]
        if self.confidence_of == "model":
            logp_mv = torch.log_softmax(logits_mv, -1)
        confidence = logp_mv.gather(1, ids[:, None])[:, 0].exp()
        spare = confidence if uniform_2m is None else uniform_2m[1]
        key = orders.key(settings.order, logp_mv=logp_mv, confidence_m=confidence, uniform_m=spare, column_m=column_m)
        return Drawn(ids, logp, confidence, key, keep)


def not_finite(settings: Settings) -> str:
    """What to say of a model whose tokens have no probability."""
    more = f", or lower sampling.guidance ({settings.guidance:g})" if settings.guidance > 0 else ""
    if 0 < settings.temperature < TINY:
        more += f", or raise sampling.temperature ({settings.temperature:g}; 0 takes the most likely token)"
    return (
        "the model's output is not finite (NaN or infinite): after an update, lower optimiser.lr and go on from an "
        f"earlier checkpoint; at the start, the weights of model.path are damaged, take a whole copy{more}"
    )
