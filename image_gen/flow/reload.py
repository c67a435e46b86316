"""What an exported flow-matching model is asked: velocities at a few noise levels, and a noiseless picture.

Axes: L noise levels, one latent of the model's own shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from image_gen.flow import plain_pictures, plain_usage
from image_gen.flow.sampler import Velocity, denoise
from image_gen.flow.steps import Ode, guided_velocity
from image_gen.pipelines.base import ImageModel
from image_gen.reloading import Measured, Probe, heard

SIGMAS = (0.95, 0.6, 0.2)
STEPS = 3  # of the sampled picture; Qwen-Image has no table of one


class FlowProbe(Probe[ImageModel]):
    """One prompt and one noise. There are no pictures where the model is no diffusers pipeline.

    Makes the text encoders free their memory. Raises UserError when the model says NaN.
    """

    what = "velocities"

    def __init__(self, model: ImageModel, prompt: str, *, height: int, width: int, guidance: float) -> None:
        self.prompt, self.height, self.width = prompt, height, width
        self.guidance = max(1.0, guidance) if model.guidance == "classifier_free" else guidance
        if plain_usage.kind(model) == "QwenImagePipeline":
            self.guidance = 1.0  # the only one at which the plain pipeline mixes as the sampler here
        model.check_size(height, width)
        told, untold = model.encode([prompt, ""])
        model.free_encoders()
        self.batch, self.nothing = model.collate([told]), model.collate([untold])
        shape = (1, *model.latent_shape(height, width))
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.calls: list[tuple[Any, Any]] = []
        self.start(model)

    @torch.no_grad()
    def measure(self, model: ImageModel) -> Measured:
        velocity = self._velocity(model)
        self.calls, said = heard(
            model, lambda: [self._forward(model, self.noise, sigma, self.batch) for sigma in SIGMAS]
        )
        if plain_usage.kind(model) is None:
            return Measured(said)
        done = denoise(
            x_n=self.noise,
            velocity=velocity,
            sigmas=model.sigmas(STEPS, self.height, self.width),
            rule=Ode(),
            window=None,
            generators=[],
            rows=[],
        )
        return Measured(said, {"pictures": model.decode(done.x_n, height=self.height, width=self.width)})

    def _forward(self, model: ImageModel, x_n: Tensor, sigma: float | Tensor, batch: dict[str, Tensor]) -> Tensor:
        scale = self.guidance if model.guidance == "embedded" else None
        return model.velocity(x_n, sigma, batch, height=self.height, width=self.width, scale=scale)

    def _velocity(self, model: ImageModel) -> Velocity:
        """With guidance, both halves apart, as long as there are two."""

        def velocity(x_n: Tensor, sigma: float | Tensor) -> Tensor:
            v_cond = self._forward(model, x_n, sigma, self.batch)
            if model.guidance == "embedded" or self.guidance == 1:
                return v_cond
            v_uncond = self._forward(model, x_n, sigma, self.nothing)
            return guided_velocity(v_cond=v_cond, v_uncond=v_uncond, guidance=self.guidance)

        return velocity

    def script(self) -> str:
        return plain_pictures.__file__

    def inputs(self) -> dict[str, Any]:
        return {"calls": self.calls, "noise": self.noise}

    def task(self, model: ImageModel) -> dict[str, Any]:
        name = plain_usage.kind(model)
        size = {"height": self.height, "width": self.width, "num_inference_steps": STEPS}
        return {
            "transformer": type(model.transformer).__name__ if name is None else None,
            "prompt": self.prompt,
            "options": size | (plain_usage.guidance(model, self.guidance) if name else {}),
            "scheduler": plain_usage.scheduler(model),
        }
