"""diffu-GRPO's one-step estimate (d1, arXiv 2504.12216): every token given a canvas of masks and a noisy prompt.

One forward for all tokens, each once, weight 1. Biased: no token is ever seen beside another one.
"""

from __future__ import annotations

import torch

from dlm.likelihood import checks, draws
from dlm.likelihood.base import Completions, Estimator, View, filled_or_read


class OneStep(Estimator):
    """p_mask_prompt: share of the prompt's tokens that is hidden, drawn anew for each row and update; 0 = none.

    Positions that were decoded but lie outside the region (after the first end token) are masked too, never read.
    """

    unit = "decision"
    exclusive = True

    def __init__(self, *, p_mask_prompt: float = 0.15) -> None:
        self.p = checks.number("one_step", "p_mask_prompt", p_mask_prompt, 0, 1)

    def views(self, rows: Completions) -> list[View]:
        prompt_np = None
        if self.p > 0:
            prompt_np = draws.uniform_nl(draws.streams(rows), rows.prompt_np) < self.p
        weight_nl = draws.over(rows.region_nl, torch.ones(len(rows), dtype=torch.float64))
        return [View(filled_or_read(rows), rows.region_nl.clone(), weight_nl, prompt_np)]
