"""The token model with and without the prompts of a batch. Axes: n images, L positions, K ids, D features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from image_gen.conditions import Conditions
from image_gen.masked.models.base import Predicted, TokenModel
from image_gen.masked.sampler import Halves
from image_gen.pipelines.base import Batch


class Prompted:
    """`image_gen.masked.sampler.Network` of some rows: their prompts are encoded (from `conditions`) and collated once.

    detach_uncond   no gradient through the unconditional half, which then runs in a forward of its own.
    """

    def __init__(
        self,
        model: TokenModel,
        conditions: Conditions,
        prompts: Sequence[str],
        *,
        size: tuple[int, int],
        autocast: Callable[[], AbstractContextManager[Any]],
        detach_uncond: bool = False,
    ) -> None:
        self.model, self.size, self.autocast, self.detach_uncond = model, size, autocast, detach_uncond
        self.told, self.nothing = conditions(prompts), conditions([""]) * len(prompts)
        self._batches: dict[str, Batch] = {}

    def __call__(self, ids_nl: Tensor, *, both: bool, features: bool) -> Halves:
        """Features are those of the conditional half."""
        if not both:
            one = self._predict(ids_nl, "told", features)
            return Halves(one.logits_nlk, None, one.features_nld)
        if self.detach_uncond and torch.is_grad_enabled():
            with torch.no_grad():
                uncond = self._predict(ids_nl, "nothing", False)
            cond = self._predict(ids_nl, "told", features)
            return Halves(cond.logits_nlk, uncond.logits_nlk, cond.features_nld)
        twice = self._predict(torch.cat([ids_nl, ids_nl]), "both", features)
        uncond_nlk, cond_nlk = twice.logits_nlk.chunk(2)
        told = None if twice.features_nld is None else twice.features_nld.chunk(2)[1]
        return Halves(cond_nlk, uncond_nlk, told)

    def _predict(self, ids_nl: Tensor, which: str, features: bool) -> Predicted:
        height, width = self.size
        with self.autocast():
            return self.model.predict(ids_nl, self._batch(which), height=height, width=width, features=features)

    def _batch(self, which: str) -> Batch:
        """Conditions of the rows, collated at their first use: every step of a decoding has the same."""
        if which not in self._batches:
            rows = {"told": self.told, "nothing": self.nothing, "both": [*self.nothing, *self.told]}[which]
            self._batches[which] = self.model.collate(rows)
        return self._batches[which]
