"""The interface of a likelihood estimator. Axes: n rows, l completion positions, p prompt positions.

An estimator says which completions to show the model (views) and what to read off; forwards, the head and gradients
belong to the policy. Estimates add up over views, so each view can be a piece of the streaming update.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass
class Completions:
    """What an estimator sees of n rows, padded on the right. Columns are completion positions.

    region_nl   bool: positions whose likelihood is wanted. Others are never read; they are shown as they are, or, where
                a step filled them and the estimator says so, masked.
    steps_nl    int64: the step that filled a position, -1 where none did (demonstrations, fixed positions).
    block_nl    int64: the block of a block-attention model that each position lies in, from 0; 0 everywhere under full
                attention, also when it was decoded block by block.
    prompt_np   bool: real prompt columns, for estimators that mask some.
    seed_n      int64: one stream of random numbers per row and update; nothing else may be random, so that old,
                current and reference evaluation, and every way to cut rows into batches, see the same masks.
    """

    region_nl: Tensor
    steps_nl: Tensor
    block_nl: Tensor
    prompt_np: Tensor
    seed_n: Tensor

    def __len__(self) -> int:
        return int(self.region_nl.shape[0])


@dataclass
class View:
    """One forward: what is hidden from the model and what is read off.

    masked_nl         bool: shown as the mask token.
    scored_nl         bool, a subset of it: positions whose log-probability is read.
    weight_nl         float64: factor on each of them in the estimate; 0 where not scored.
    prompt_masked_np  bool or None: prompt columns shown as the mask token.
    """

    masked_nl: Tensor
    scored_nl: Tensor
    weight_nl: Tensor
    prompt_masked_np: Tensor | None = None


class Estimator(ABC):
    """Registered by name (`dlm.likelihood.registry`); its options are keyword-only parameters of the constructor.

    unit       row: only the sum over a row's positions has a meaning (ELBO); decision: each position's value has.
    exclusive  every position of the region is scored by exactly one view with weight 1.
    """

    unit: Literal["row", "decision"] = "row"
    exclusive: bool = False
    random: bool = True  # views draw random numbers (from the rows' seeds); otherwise they follow from the rows
    needs_steps: bool = False  # rows must carry the step map of their decoding

    @abstractmethod
    def views(self, rows: Completions) -> list[View]:
        """The forwards of one evaluation; the same ones for equal rows and seeds."""

    def combine(self, logps: list[Tensor], views: list[View]) -> Tensor:
        """Log-probabilities of each view [n, l] -> the estimate per position [n, l]: sum over views of weight * lp.

        Never multiplies what is not scored.
        """
        total = torch.zeros_like(logps[0])
        for logp_nl, view in zip(logps, views, strict=True):
            scored = view.scored_nl.to(logp_nl.device)
            weight = view.weight_nl.to(logp_nl)
            total = total + torch.where(scored, logp_nl, torch.zeros_like(logp_nl)) * weight
        return total


def filled_or_read(rows: Completions) -> Tensor:
    """All that a decoding began with as masks: the region, and what it filled beside it; bool [n, l]."""
    return rows.region_nl | (rows.steps_nl >= 0)


def outside(rows: Completions, rest: str) -> Tensor:
    """What to mask outside the region, bool [n, l]: nothing for rest "shown", all that was filled for "masked"."""
    return filled_or_read(rows) & ~rows.region_nl if rest == "masked" else torch.zeros_like(rows.region_nl)
