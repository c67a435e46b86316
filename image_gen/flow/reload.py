"""Is an exported folder the model that was trained? Velocities and pictures, here and in a fresh plain process.

Axes: L noise levels, one latent of the model's own shape.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from image_gen.flow import plain_pictures, plain_usage
from image_gen.flow.sampler import Velocity, denoise
from image_gen.flow.steps import Ode, guided_velocity
from image_gen.pipelines.base import ImageModel
from mmrl.errors import UserError
from mmrl.training.exported import largest_difference

SIGMAS = (0.95, 0.6, 0.2)
STEPS = 3  # of the sampled picture; Qwen-Image has no table of one
#: Of the largest velocity (at least 1): many times what float32 loses by another order of operations.
TOLERANCE = 1e-4
#: Of the range from black to white: a quarter of one of 256 levels.
PICTURE_TOLERANCE = 1e-3
_LOADING = ("Loading", "Fetching", "Writing")  # progress bars on stderr


@dataclass(frozen=True)
class Measured:
    """velocities   what the transformer says at each level, with the shapes it says it in.
    pictures     [1, 3, H, W] in [0, 1]; None where they cannot be compared (no diffusers pipeline)."""

    velocities: list[Tensor]
    pictures: Tensor | None

    def apart(self, other: Measured) -> tuple[float, float | None]:
        """Largest absolute differences of velocities and pictures; infinite for another shape or a NaN."""
        pairs = zip(self.velocities, other.velocities, strict=True)
        velocities = max(largest_difference(a, b) for a, b in pairs)
        if self.pictures is None or other.pictures is None:
            return velocities, None
        return velocities, largest_difference(self.pictures, other.pictures)


class Probe:
    """One prompt and one noise, and what they gave when the model was as the run evaluates it.

    Makes the text encoders free their memory. Raises UserError when the model says NaN.
    """

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
        self.expected = self.measure(model)
        if not all(v.isfinite().all() for v in self.expected.velocities):
            raise UserError("the model's velocities are not finite: its training went wrong; export an earlier step")
        self.tolerance = TOLERANCE * max(1.0, *(float(v.abs().max()) for v in self.expected.velocities))

    @torch.no_grad()
    def measure(self, model: ImageModel) -> Measured:
        """By the code that samples and evaluates. Keeps the arguments that the transformer was called with."""
        velocity, calls, said = self._velocity(model), [], []

        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            calls.append((args, kwargs))
            said.append((output[0] if isinstance(output, tuple) else output).detach().float().clone())

        handle = model.transformer.register_forward_hook(hook, with_kwargs=True)
        try:
            for sigma in SIGMAS:
                self._forward(model, self.noise, sigma, self.batch)
        finally:
            handle.remove()
        self.calls = calls
        if plain_usage.kind(model) is None:
            return Measured(said, None)
        done = denoise(
            x_n=self.noise,
            velocity=velocity,
            sigmas=model.sigmas(STEPS, self.height, self.width),
            rule=Ode(),
            window=None,
            generators=[],
            rows=[],
        )
        return Measured(said, model.decode(done.x_n, height=self.height, width=self.width))

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

    def task(self, model: ImageModel) -> dict[str, Any]:
        """What a fresh process has to know of the model, while it is still here."""
        name = plain_usage.kind(model)
        size = {"height": self.height, "width": self.width, "num_inference_steps": STEPS}
        return {
            "transformer": type(model.transformer).__name__ if name is None else None,
            "prompt": self.prompt,
            "options": size | (plain_usage.guidance(model, self.guidance) if name else {}),
            "scheduler": plain_usage.scheduler(model),
            "threads": torch.get_num_threads(),
        }

    def reloaded(self, folder: Path, *, base: Path | None, task: dict[str, Any]) -> Measured:
        """The same of the folder in a fresh process. `base` is given for an adapter. Raises UserError when it does not
        load."""
        with tempfile.TemporaryDirectory(prefix="mmrl-reload-") as room:
            inputs, out, file = (Path(room) / name for name in ("inputs.pt", "out.safetensors", "task.json"))
            torch.save({"calls": self.calls, "noise": self.noise}, inputs)
            places = {
                "model": str((base or folder).resolve()),
                "lora": str(folder.resolve()) if base else None,
                "inputs": str(inputs),
                "out": str(out),
            }
            file.write_text(json.dumps(task | places), encoding="utf-8")
            command = [sys.executable, "-P", plain_pictures.__file__, str(file)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=room)
            if done.returncode != 0 or not out.is_file():
                raise UserError(f"the exported folder does not load in plain diffusers: {_reason(done.stderr)}")
            found = load_file(out)
        return Measured([found[f"velocity{i}"] for i in range(len(SIGMAS))], found.get("pictures"))


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith(_LOADING)]
    return lines[-1][:500] if lines else "the process ended without a word"
