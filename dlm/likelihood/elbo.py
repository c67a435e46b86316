"""The loss of supervised training: one random noise level a row, or one a block, and 1/t for every masked token.

    ELBO = E over t ~ U(0, 1), mask ~ Bernoulli(t) of (1/t) sum over the masked of lp

(LLaDA, arXiv 2502.09992; with one t a block, block diffusion, BD3LM, arXiv 2503.09573). The average over many rows is
what counts here, so a row gets one forward. Divide by the row's number of scored tokens for LLaDA's loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlm.likelihood import checks, draws
from dlm.likelihood.base import Completions, Estimator, View, outside
from mmrl.errors import UserError


class Elbo(Estimator):
    """level       row: one t a row; block: every block of `block_nl` draws its own.
    masks       bernoulli: each token by itself, 1/t; exact: k uniform over 1 .. L (of the row or block), exactly k
                tokens, L/k, so that none goes without a masked token.
    antithetic  a second view with the complement of the mask, at 1 - t: each token is read once. Two forwards.
                Bernoulli masks only (estimator `complementary` is the same for exact masks).
    t_min, t_max  the range t is drawn from; 0 and 1 are unbiased, LLaDA's code takes 0.001 and 1.
    rest        completion positions outside the region: shown, or masked.
    """

    unit = "row"

    def __init__(
        self,
        *,
        level: str = "row",
        masks: str = "bernoulli",
        antithetic: bool = False,
        t_min: float = 0.001,
        t_max: float = 1.0,
        rest: str = "shown",
    ) -> None:
        self.level = checks.one_of("elbo", "level", level, ("row", "block"))
        self.masks = checks.one_of("elbo", "masks", masks, ("bernoulli", "exact"))
        self.antithetic = checks.switch("elbo", "antithetic", antithetic)
        self.t_min = checks.number("elbo", "t_min", t_min, 0, 1)
        self.t_max = checks.number("elbo", "t_max", t_max, 0, 1)
        self.rest = checks.one_of("elbo", "rest", rest, ("shown", "masked"))
        if self.t_min >= self.t_max:
            raise UserError(f"likelihood elbo: t_min {t_min} must be below t_max {t_max}")
        if self.masks == "exact" and (antithetic or (t_min, t_max) != (0.001, 1.0)):
            raise UserError("likelihood elbo: masks: exact draws counts, not t; leave antithetic, t_min and t_max out")

    def views(self, rows: Completions) -> list[View]:
        streams, hidden_nl = draws.streams(rows), outside(rows, self.rest)
        part_nl = rows.block_nl if self.level == "block" else torch.zeros_like(rows.block_nl)
        level_nl = _each_part(streams, rows.region_nl, part_nl)
        u_nl = draws.uniform_nl(streams, rows.region_nl)
        if self.masks == "exact":
            pairs = [_exact(u_nl, level_nl, rows.region_nl, part_nl)]
        else:
            t_nl = self.t_min + (self.t_max - self.t_min) * level_nl
            mask_nl = rows.region_nl & (u_nl < t_nl)
            pairs = [(mask_nl, 1 / t_nl.clamp(min=1e-30))]
            if self.antithetic:
                pairs = [(mask_nl, 0.5 / t_nl.clamp(min=1e-30)), (rows.region_nl & ~mask_nl, 0.5 / (1 - t_nl))]
        return [View(mask | hidden_nl, mask, draws.over(mask, weight)) for mask, weight in pairs]


def _each_part(streams: list[torch.Generator], region_nl: Tensor, part_nl: Tensor) -> Tensor:
    """One number of [0, 1) for each part (0 or a block) that the row's region touches, at its positions; [n, l]."""
    out_nl = torch.zeros(region_nl.shape, dtype=torch.float64)
    for row, generator in enumerate(streams):
        at = region_nl[row]
        parts, index = torch.unique(part_nl[row, at], return_inverse=True)
        out_nl[row, at] = torch.rand(len(parts), generator=generator, dtype=torch.float64)[index]
    return out_nl


def _exact(u_nl: Tensor, level_nl: Tensor, region_nl: Tensor, part_nl: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of exactly k of the L positions of a part, k = 1 + floor(level * L), and L/k; [n, l] both."""
    columns_nl = _per_part(torch.ones_like(part_nl), part_nl)
    length_nl = _per_part(region_nl.long(), part_nl).gather(1, part_nl)
    count_nl = torch.minimum((level_nl * length_nl).floor().long() + 1, length_nl)
    # Order all columns by (part, number), outside the region last of a part; the rank counts from where a part begins.
    before_nl = (columns_nl.cumsum(dim=1) - columns_nl).gather(1, part_nl)
    rank_nl = (part_nl + u_nl / 4).argsort(dim=1).argsort(dim=1) - before_nl
    return region_nl & (rank_nl < count_nl), draws.times(count_nl, length_nl)


def _per_part(value_nl: Tensor, part_nl: Tensor) -> Tensor:
    """Sum of the values in each part; [n, parts]."""
    parts = int(part_nl.max()) + 1 if part_nl.numel() else 1
    return torch.zeros(len(part_nl), parts, dtype=value_nl.dtype).scatter_add(1, part_nl, value_nl)
