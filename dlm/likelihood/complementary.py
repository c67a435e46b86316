"""Pairs of views with complementary masks: every token is read once in a pair."""

from __future__ import annotations

import torch

from dlm.likelihood import checks, draws
from dlm.likelihood.base import Completions, Estimator, View, filled_or_read, outside
from mmrl.errors import UserError


class Complementary(Estimator):
    """ELBO by pairs (ESPO, arXiv 2512.03759): k masked tokens with (L+1)/k, the L - k others with (L+1)/(L-k), halved.

    k is uniform over 0 .. L; several pairs of a row are evenly spaced from a random one. Unbiased. Two forwards a pair.
    rest: completion positions outside the region, shown or masked.
    """

    unit = "row"

    def __init__(self, *, pairs: int = 1, rest: str = "shown") -> None:
        self.pairs = checks.whole("complementary", "pairs", pairs, 1, 512)
        self.rest = checks.one_of("complementary", "rest", rest, ("shown", "masked"))

    def views(self, rows: Completions) -> list[View]:
        streams, length_n, hidden_nl = draws.streams(rows), draws.lengths(rows), outside(rows, self.rest)
        first_n = draws.integer_n(draws.uniform_n(streams), length_n + 1) - 1
        out = []
        for j in range(self.pairs):
            shift_n = (2 * j * (length_n + 1) + self.pairs) // (2 * self.pairs)
            count_n = (first_n + shift_n) % (length_n + 1)
            mask_nl = draws.lowest(draws.uniform_nl(streams, rows.region_nl), count_n)
            for part_nl, size_n in ((mask_nl, count_n), (rows.region_nl & ~mask_nl, length_n - count_n)):
                weight_n = draws.times(size_n, length_n + 1) / (2 * self.pairs)
                out.append(View(part_nl | hidden_nl, part_nl, draws.over(part_nl, weight_n)))
        return out


class Coupled(Estimator):
    """Coupled-GRPO (DiffuCoder, arXiv 2506.20639): a token's value is the mean of two log-probabilities.

    One with everything masked; one from the view of a complementary pair in which it is masked, with weight 1/r in the
    view of the mask (each token with probability r) and 1/(1-r) in the other; r ~ U(low, high) for each row. Three
    forwards. Positions that were decoded outside the region are masked, never read.
    """

    unit = "decision"

    def __init__(self, *, low: float = 0.2, high: float = 0.8) -> None:
        self.low = checks.number("coupled", "low", low, 1e-3, 1 - 1e-3)
        self.high = checks.number("coupled", "high", high, 1e-3, 1 - 1e-3)
        if self.low > self.high:
            raise UserError(f"likelihood coupled: low {low} must not be above high {high}")

    def views(self, rows: Completions) -> list[View]:
        streams, region_nl = draws.streams(rows), rows.region_nl
        hidden_nl = outside(rows, "masked")
        r_n = self.low + (self.high - self.low) * draws.uniform_n(streams)
        mask_nl = region_nl & (draws.uniform_nl(streams, region_nl) < r_n[:, None])
        half_n = torch.full_like(r_n, 0.5)
        out = [View(filled_or_read(rows), region_nl.clone(), draws.over(region_nl, half_n))]
        for part_nl, share_n in ((mask_nl, r_n), (region_nl & ~mask_nl, 1 - r_n)):
            out.append(View(part_nl | hidden_nl, part_nl, draws.over(part_nl, 0.5 / share_n)))
        return out


class RandomMasking(Estimator):
    """Tokens at random masks (UniGRPO of MMaDA, arXiv 2505.15809; random masking of Gen-Verse/dLLM-RL).

    Each view masks a share t of U(low, high) of the region, evenly spread over the views from a random first one, at
    least one token; a token's value is its mean over the views that masked it, 0 (a ratio of 1, no gradient) when none
    did. The released code takes a ratio in each view instead and averages those; with one view it is the same.
    """

    unit = "decision"

    def __init__(self, *, views: int = 1, low: float = 0.1, high: float = 0.9) -> None:
        self.count = checks.whole("random_masking", "views", views, 1, 1024)
        self.low = checks.number("random_masking", "low", low, 0, 1)
        self.high = checks.number("random_masking", "high", high, 0, 1)
        if self.low > self.high:
            raise UserError(f"likelihood random_masking: low {low} must not be above high {high}")

    def views(self, rows: Completions) -> list[View]:
        streams, length_n, hidden_nl = draws.streams(rows), draws.lengths(rows), outside(rows, "masked")
        u_n = draws.uniform_n(streams)
        masks = []
        for j in range(self.count):
            t_n = self.low + (self.high - self.low) * ((u_n + j / self.count) % 1)
            count_n = torch.minimum((t_n * length_n).round().long().clamp(min=1), length_n)
            masks.append(draws.lowest(draws.uniform_nl(streams, rows.region_nl), count_n))
        times_nl = torch.stack(masks).double().sum(dim=0).clamp(min=1)
        return [View(m | hidden_nl, m, draws.over(m, 1 / times_nl)) for m in masks]
