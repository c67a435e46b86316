"""PLACEHOLDER of the sampler's interface; see its owner's version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Confidence = Literal["tempered", "untempered"]


@dataclass(frozen=True)
class Halves:
    """Logits of one step, [n, L, K] each; `uncond_nlk` None where guidance is 1 for every row."""

    cond_nlk: Tensor
    uncond_nlk: Tensor | None = None
    features_nld: Tensor | None = None


class Network(Protocol):
    def __call__(self, ids_nl: Tensor, *, both: bool, features: bool) -> Halves:
        """Predict on canvases (mask id where open). both: the unconditional half as well."""


class Actor(Protocol):
    """Chooses the schedule values of each step (`image_gen.masked.schedule.acting`)."""

    reads_features: bool

    def both(self, step: int) -> bool:
        """Guidance may differ from 1 at this step."""

    def act(self, step: int, *, n: int, features_nld: Tensor | None) -> tuple[Tensor, Tensor]:
        """(raw actions [n, V], values [n, V] = ratio, re-mask temperature, sample temperature, guidance), float32."""


@dataclass
class Decoded:
    """A batch of whole canvases; steps_nl is their step map, logp_nl the log-prob of each filled token (0 at given
    positions), raw_ntv and value_ntv what the schedule chose. All on the CPU. forwards: calls of the transformer, a
    call on both halves counts twice."""

    ids_nl: Tensor
    steps_nl: Tensor
    logp_nl: Tensor
    raw_ntv: Tensor
    value_ntv: Tensor
    forwards: int


def decode(
    *,
    canvas_nl: Tensor,
    steps: int,
    network: Network,
    actor: Actor,
    mask_id: int,
    generators: Sequence[torch.Generator],
    confidence: Confidence = "tempered",
) -> Decoded:
    """Fill the open positions (mask_id) of `canvas_nl` in `steps` steps. One generator a row: the row's noise depends
    on it alone, not on the batch. No gradient."""
    raise NotImplementedError
