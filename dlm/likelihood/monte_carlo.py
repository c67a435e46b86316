"""The ELBO by Monte Carlo over the number of masked tokens as well; unbiased, noisy. Baselines of SDMC.

ELBO = mean over k = 1..L of E_mask[ (L/k) sum of lp over the k masked ]
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlm.likelihood import checks, draws
from dlm.likelihood.base import Completions, Estimator, View, outside


class _CountsAndMasks(Estimator):
    unit = "row"
    name = ""

    def __init__(self, *, samples: int = 4, rest: str = "shown") -> None:
        self.samples = checks.whole(self.name, "samples", samples, 1, 1024)
        self.rest = checks.one_of(self.name, "rest", rest, ("shown", "masked"))

    def counts(self, streams: list[torch.Generator], length_n: Tensor) -> list[Tensor]:
        """Masked tokens of each view, int64 [n]."""
        raise NotImplementedError

    def views(self, rows: Completions) -> list[View]:
        streams, length_n, hidden_nl = draws.streams(rows), draws.lengths(rows), outside(rows, self.rest)
        out = []
        for count_n in self.counts(streams, length_n):
            mask_nl = draws.lowest(draws.uniform_nl(streams, rows.region_nl), count_n)
            weight_n = draws.times(count_n, length_n) / self.samples
            out.append(View(mask_nl | hidden_nl, mask_nl, draws.over(mask_nl, weight_n)))
        return out


class MonteCarlo(_CountsAndMasks):
    """Double Monte Carlo: every view draws its own k, uniform over 1 .. L, and its mask.

    samples: views, one forward each. rest: completion positions outside the region, shown or masked.
    """

    name = "mc"

    def counts(self, streams: list[torch.Generator], length_n: Tensor) -> list[Tensor]:
        return [draws.integer_n(draws.uniform_n(streams), length_n) for _ in range(self.samples)]


class StratifiedMonteCarlo(_CountsAndMasks):
    """One random k a row, the others evenly spaced from it (LLaDA's likelihood code, arXiv 2502.09992).

    k_j = (floor(k_0 + j L / N + 1/2) - 1) mod L + 1. Halves are rounded up: rounded to even, as the released code does,
    some k are drawn twice as often as others and the estimate is biased. samples: views N, one forward each.
    """

    name = "strat_mc"

    def counts(self, streams: list[torch.Generator], length_n: Tensor) -> list[Tensor]:
        first_n = draws.integer_n(draws.uniform_n(streams), length_n)
        most_n = length_n.clamp(min=1)
        out = []
        for j in range(self.samples):
            shift_n = (2 * j * length_n + self.samples) // (2 * self.samples)  # floor(j L / N + 1/2), in integers
            out.append(torch.minimum((first_n + shift_n - 1) % most_n + 1, length_n))
        return out
