"""The standard deviation of raw actions: fixed and falling with the updates, or learned. V = 4 variables."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from image_gen.masked import config
from image_gen.masked.config import VARIABLES

#: A learned deviation stays below this, as a configured one does.
CEILING = 10.0


class Deviation(nn.Module):
    """RECONSTRUCTION after AdaNAT (arXiv 2409.00342): 0.6, lowered by 0.3 after every 500 updates, not below 0.1.

    Fixed: max(start - drop * (updates // every), floor), the same for all variables, no parameter. Learned (ours): one
    log-deviation a variable, from ln(start); no decay. After each update it is put back between the floor and 10: that
    keeps its gradient alive at the edges, which a clamp in the forward would not.

    The number of updates is a buffer, so it is stored and resumed.
    """

    count: Tensor
    _like_v: Tensor

    def __init__(self, options: config.Deviation) -> None:
        super().__init__()
        self.options = options.model_copy()
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("_like_v", torch.zeros(len(VARIABLES)), persistent=False)
        self.log_v = nn.Parameter(self.first_v.log()) if options.learned else None

    def forward(self) -> Tensor:
        """[V], positive; with gradient where learned."""
        if self.log_v is not None:
            return self.log_v.exp()
        drops = torch.div(self.count, self.options.every, rounding_mode="floor")
        now = (self.options.start - self.options.drop * drops.double()).clamp(min=self.options.floor)
        return now.to(self._like_v.dtype).expand(len(VARIABLES))

    @property
    def first_v(self) -> Tensor:
        """[V], before any update."""
        return torch.full_like(self._like_v, self.options.start)

    def stepped(self) -> None:
        """Count an update. Learned: also put the parameter back into its range."""
        self.count += 1
        if self.log_v is not None:
            with torch.no_grad():
                self.log_v.clamp_(math.log(self.options.floor), math.log(CEILING))
