"""One decoded canvas: all that is needed to recompute the likelihood of its tokens and of its schedule exactly.

Axes: L positions, T decoding steps, V = 4 schedule variables (`image_gen.masked.schedule.targets.VARIABLES`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.masked.steps import visible_before


@dataclass
class Decoding:
    """On the CPU. A picture to imitate is one of a single step, which filled what training masks.

    prompt     what it was conditioned on.
    ids        int64 [L], all in the codebook. The canvas before step t holds them where `steps < t`, else the mask.
    steps      int64 [L], the step map (`mmrl.masked.steps`): the step that filled a position for good, -1 = given.
    raw        float32 [T, V], raw schedule actions; 0 where there is none (the last step).
    value      float32 [T, V], the values that were used: ratio, re-mask and sample temperature, guidance.
    deviation  float32 [V], of the Gaussian that the actions were drawn from.
    """

    prompt: str
    ids: Tensor
    steps: Tensor
    raw: Tensor
    value: Tensor
    deviation: Tensor

    @property
    def n_steps(self) -> int:
        return len(self.value)


def canvas_before(rows: Sequence[Decoding], step: int, mask_id: int) -> Tensor:
    """What the model saw at a step: ids of what was filled before it, else the mask. int64 [n, L]"""
    ids_nl = torch.stack([row.ids for row in rows])
    steps_nl = torch.stack([row.steps for row in rows])
    return torch.where(visible_before(steps_nl, step), ids_nl, mask_id)
