"""What is asked of the sampler and what it gives back. Axes: l completion positions, p prompt tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dlm.rows import Kept

Order = Literal["low_confidence", "random", "entropy", "margin", "sequential"]
Rule = Literal["steps", "threshold", "factor"]


@dataclass(frozen=True)
class Settings:
    """How one completion is decoded; meanings and defaults as in `dlm.config.Sampling`, and beside them

    greedy      take the most likely token; its log-probability is still that of softmax(logits / temperature).
                A temperature of 0 is greedy at temperature 1.
    confidence  of which distribution: model = softmax(logits), as LLaDA; sampled = the tempered and cut one, as SDAR;
                auto = model for full attention, sampled for block attention.
    stop_early  leave after the block in which the first end token stands. None: block attention only, where what
                follows cannot change what is before. Full attention with it leaves the rest masked (steps -1).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    order: Order = "low_confidence"
    rule: Rule = "steps"
    steps: int | None = None
    threshold: float = 0.9
    factor: float = 1.0
    cache: Literal["off", "block", "prefix", "dual"] = "off"
    refresh: int = 0
    guidance: float = 0.0
    eos: Literal["free", "late", "never"] = "free"
    greedy: bool = False
    confidence: Literal["auto", "model", "sampled"] = "auto"
    stop_early: bool | None = None

    @property
    def takes_best(self) -> bool:
        return self.greedy or self.temperature == 0

    @property
    def tempered(self) -> float:
        """The temperature of the log-probabilities."""
        return self.temperature or 1.0

    @property
    def cuts(self) -> bool:
        return not self.takes_best and (self.top_p < 1.0 or self.top_k > 0)


@dataclass(frozen=True, eq=False)
class Job:
    """One completion of `limit` positions to decode. All its random numbers come from `generator` (on the CPU)."""

    prompt_ids: Tensor
    limit: int
    settings: Settings
    generator: torch.Generator


@dataclass(eq=False)
class Sampled:
    """A completion, on the CPU.

    ids       int64 [L]; the mask token where nothing was filled (`stop_early` with full attention). L is the limit, or
              less where block attention stopped early: blocks that were not decoded are cut off.
    steps     int64 [L]: forward (of this completion, from 0) that filled the position, -1 = none. The model saw the
              canvas with every position of steps >= s masked at step s; with approximate caches nearly so.
    logp      [L]: log-probability of the token under the distribution it was drawn from; 0 where nothing was filled.
    kept      the ids that top-p / top-k left, None when nothing was cut off.
    forwards  denoising forwards of this row = distinct steps.
    length    positions up to and including the first end token; L when there is none.
    finished  there is an end token.
    """

    ids: Tensor
    steps: Tensor
    logp: Tensor
    kept: Kept | None
    forwards: int
    length: int
    finished: bool


@dataclass
class Stats:
    """Of one call.

    denoising  forwards of a batch from which tokens were filled.
    total      all forwards: with those of prompts, cache writes and guidance.
    tokens     positions filled. row_steps  rows put through the model in all forwards.
    """

    denoising: int = 0
    total: int = 0
    tokens: int = 0
    row_steps: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return {k: float(v) for k, v in vars(self).items()}
