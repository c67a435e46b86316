"""What an exported masked-image model is asked: logits of one canvas with and without the prompt, a decoded canvas, and
what its schedule holds.

Axes: L positions of a canvas.
"""

from __future__ import annotations

from typing import Any

import torch

from image_gen.masked import plain_tokens
from image_gen.masked.models.amused import Amused
from image_gen.masked.models.base import TokenModel
from image_gen.masked.schedule.base import Schedule
from image_gen.reloading import PICTURES, Further, Measured, Probe, heard


class MaskedProbe(Probe[TokenModel]):
    """One prompt, a canvas with every second position open, and a whole one.

    Makes the text encoder free its memory. Raises UserError when the model says NaN.
    """

    what = "logits"
    further = {"pictures": PICTURES, "schedule": Further("raw means and deviations", 0.0)}

    def __init__(self, model: TokenModel, schedule: Schedule, prompt: str, *, height: int, width: int) -> None:
        self.prompt, self.size, self.schedule = prompt, (height, width), schedule
        rows, columns = model.grid(height, width)
        told, untold = model.encode([prompt, ""])
        model.free_encoders()
        self.batches = (model.collate([told]), model.collate([untold]))
        generator = torch.Generator().manual_seed(0)
        self.whole = torch.randint(model.codebook, (1, rows * columns), generator=generator)
        self.open = self.whole.clone()
        self.open[:, torch.randperm(rows * columns, generator=generator)[::2]] = model.mask_id
        self.calls: list[tuple[Any, Any]] = []
        self.start(model)

    @torch.no_grad()
    def measure(self, model: TokenModel) -> Measured:
        height, width = self.size
        self.calls, said = heard(
            model, lambda: [model.predict(self.open, batch, height=height, width=width) for batch in self.batches]
        )
        state = self.schedule.state_dict()
        values = torch.cat([state[name].detach().cpu().flatten().float() for name in sorted(state)])
        return Measured(
            said, {"pictures": model.decode(self.whole, height=height, width=width).cpu(), "schedule": values}
        )

    def script(self) -> str:
        return plain_tokens.__file__

    def inputs(self) -> dict[str, Any]:
        return {"calls": self.calls, "whole": self.whole}

    def task(self, model: TokenModel) -> dict[str, Any]:
        if not isinstance(model, Amused):
            return {"own": True, "size": list(self.size)}
        vq = model.pipe.vqvae.config
        return {"own": False, "shape": [1, *model.grid(*self.size), vq.vq_embed_dim or vq.latent_channels]}
