"""Log-probabilities along the decoding that was really made: TraceRL (arXiv 2509.06949), LightningRL (2603.13319).

Each token is read once, from a forward that shows what was visible when it was filled. Under block attention all
blocks are scored side by side, as packed clean and noisy copies, so that a row takes as many forwards as its slowest
block took steps; under full attention (block 0 everywhere) one per step of the decoding.
"""

from __future__ import annotations

import torch

from dlm.likelihood import checks, draws
from dlm.likelihood.base import Completions, Estimator, View, filled_or_read
from mmrl.errors import UserError
from mmrl.masked.steps import slices


class Trajectory(Estimator):
    """slices   exact: the step map is followed; one_step: everything is masked at once and the step map is ignored
             (one forward, biased: what LightningRL's released code does).
    shrink   exact: so many consecutive steps of a block are scored as one, as if filled together.
    """

    unit = "decision"
    exclusive = True
    random = False

    def __init__(self, *, slices: str = "exact", shrink: int = 1) -> None:
        self.slices = checks.one_of("trajectory", "slices", slices, ("exact", "one_step"))
        self.shrink = checks.whole("trajectory", "shrink", shrink, 1, 1_000_000)
        self.needs_steps = self.slices == "exact"
        if shrink > 1 and not self.needs_steps:
            raise UserError("likelihood trajectory: shrink has no effect with slices: one_step; leave it out")

    def views(self, rows: Completions) -> list[View]:
        one_n = torch.ones(len(rows))
        if not self.needs_steps:
            return [View(filled_or_read(rows), rows.region_nl.clone(), draws.over(rows.region_nl, one_n))]
        without = rows.region_nl & (rows.steps_nl < 0)
        if bool(without.any()):
            row, column = (int(i) for i in without.nonzero()[0])
            raise UserError(
                f"likelihood trajectory: position {column} of row {row} has no decoding step (a demonstration?); "
                "take slices: one_step or an ELBO estimator for rows that were not sampled"
            )
        parts = slices(rows.steps_nl, rows.block_nl, within_nl=rows.region_nl, shrink=self.shrink)
        if not parts:  # nothing to score, in a view of nothing
            nothing_nl = torch.zeros_like(rows.region_nl)
            return [View(nothing_nl, nothing_nl, nothing_nl.double())]
        return [View(p.masked_nl, p.filled_nl, draws.over(p.filled_nl, one_n)) for p in parts]
