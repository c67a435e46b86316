"""SDMC: the ELBO by quadrature over the share of masked tokens, Monte Carlo over which ones (GDPO, arXiv 2510.08554).

    ELBO = integral over t of E_mask[ (1/t) sum of lp over the masked ]
         ~ sum_n w_n mean_k (1/t_n) sum_i m_nki lp(i | y_nk)

At time t_n exactly k_n of the row's L positions are masked, about t_n L: no binomial spread. Because the times are
fixed, the noise of drawing them, most of the variance of plain Monte Carlo where log-probabilities depend much on the
share of masks, is gone; what is left of it is a bias, nearly the same for old and current policy. `nodes x draws`
forwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlm.likelihood import checks, draws
from dlm.likelihood.base import Completions, Estimator, View, outside
from dlm.likelihood.rules import rule as find_rule

_SLACK = 1e-9  # 0.29 * 100 is 29, not 28.999...


def masked_counts(time: float, length_n: Tensor, count: str = "floor") -> tuple[Tensor, Tensor]:
    """floor (or ceil) of time * L, clamped to [1, L] (0 of 0), int64 [n]; and where it was clamped, bool [n]."""
    exact_n = time * length_n.double()
    count_n = ((exact_n + _SLACK).floor() if count == "floor" else (exact_n - _SLACK).ceil()).long()
    return torch.minimum(count_n.clamp(min=1), length_n), count_n < 1


class SDMC(Estimator):
    """rule       see `dlm.likelihood.rules`.
    draws      masks per time, K.
    weighting  1/t: the published form; L/k: one over the share that really is masked, exact for every rule when
               log-probabilities do not depend on the mask, and less biased otherwise.
    count      masked tokens of time t: floor(t L), as published, or ceil(t L): t uniform then makes k uniform over
               1 .. L, so that with L/k only the rule's own error is left of the bias.
    clamped    weighting 1/t where floor(t L) is 0 and one position is masked instead: L/k, or 1/t all the same (then a
               completion of one token counts 1/t times). The released code lets such a time count nothing.
    rest       completion positions outside the region: shown, or masked.
    """

    unit = "row"

    def __init__(
        self,
        *,
        rule: str = "gauss-3",
        draws: int = 1,
        weighting: str = "1/t",
        count: str = "floor",
        clamped: str = "L/k",
        rest: str = "shown",
    ) -> None:
        self.times, self.weights = find_rule(rule)
        self.draws = checks.whole("sdmc", "draws", draws, 1, 1024)
        self.weighting = checks.one_of("sdmc", "weighting", weighting, ("1/t", "L/k"))
        self.count = checks.one_of("sdmc", "count", count, ("floor", "ceil"))
        self.clamped = checks.one_of("sdmc", "clamped", clamped, ("L/k", "1/t"))
        self.rest = checks.one_of("sdmc", "rest", rest, ("shown", "masked"))

    def views(self, rows: Completions) -> list[View]:
        streams, length_n = draws.streams(rows), draws.lengths(rows)
        hidden_nl = outside(rows, self.rest)
        out = []
        for time, weight in zip(self.times, self.weights, strict=True):
            count_n, clamped_n = masked_counts(time, length_n, self.count)
            share_n = draws.times(count_n, length_n)
            if self.weighting == "1/t":
                by_time = torch.full_like(share_n, 1 / time)
                share_n = torch.where(clamped_n & (self.clamped == "L/k"), share_n, by_time)
            for _ in range(self.draws):
                mask_nl = draws.lowest(draws.uniform_nl(streams, rows.region_nl), count_n)
                out.append(View(mask_nl | hidden_nl, mask_nl, draws.over(mask_nl, share_n * (weight / self.draws))))
        return out
