"""One decoded canvas: all that is needed to recompute the likelihood of its tokens and of its schedule exactly.

Axes: L positions, T decoding steps, V = 4 schedule variables (`image_gen.masked.schedule.targets.VARIABLES`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Decoding:
    """On the CPU.

    prompt     what it was conditioned on.
    ids        int64 [L], all in the codebook. The canvas before step t holds them where `steps < t`, else the mask.
    steps      int64 [L], the step map (`mmrl.masked.steps`): the step that filled a position for good, -1 = given.
    raw        float32 [T, V], raw schedule actions; 0 where there is none (the last step).
    value      float32 [T, V], the values that were used: ratio, re-mask and sample temperature, guidance.
    deviation  float32 [V], of the Gaussian that the actions were drawn from.
    share      an imitated picture: the share of its positions that is masked (recipe sft); None for a sample.
    """

    prompt: str
    ids: Tensor
    steps: Tensor
    raw: Tensor
    value: Tensor
    deviation: Tensor
    share: float | None = None

    @property
    def n_steps(self) -> int:
        return len(self.value)
