"""What the flow-matching pipelines of diffusers share: the table of noise levels, the velocity, decoding."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from image_gen.flow.sigmas import resolution_shift
from image_gen.pipelines.base import ImageModel
from image_gen.pipelines.components import ComponentsModel, first_dtype
from image_gen.pipelines.pixels import pixels_of
from mmrl.errors import UserError

#: One noise level, or one a row [N].
Level = float | Tensor


class DiffusersModel(ComponentsModel, ImageModel):
    """A flow-matching pipeline of diffusers; one subclass an architecture."""

    #: The schedulers whose tables and steps are known here, by class name.
    schedulers: ClassVar[tuple[str, ...]] = ("FlowMatchEulerDiscreteScheduler",)

    def __init__(self, pipe: Any, *, source: Path, device: torch.device) -> None:
        super().__init__(pipe, source=source, device=device, layout=type(pipe).__name__)
        self.check_scheduler()

    # sampling

    def _multiple(self) -> int:
        return int(self.pipe.vae_scale_factor) * int(self.config.patch_size)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        self.check_size(height, width)
        factor = int(self.pipe.vae_scale_factor)
        return int(self.config.in_channels), height // factor, width // factor

    def check_scheduler(self) -> None:
        """Raises UserError for a scheduler whose noise levels are not those of flow matching."""
        scheduler = self.pipe.scheduler
        name = type(scheduler).__name__
        if name not in self.schedulers or scheduler.config.get("invert_sigmas"):
            raise UserError(
                f"{self.source}: scheduler {name} with these settings is not a flow-matching one; "
                f"use {' or '.join(self.schedulers)}"
            )

    def _timetable(self, steps: int, height: int, width: int) -> dict[str, Any]:
        """The arguments with which the pipeline calls `set_timesteps`."""
        return {"num_inference_steps": steps}

    def _mu(self, tokens: int, *, top: float) -> float:
        """The resolution-dependent shift; `top` is the pipeline's default of max_shift."""
        get = self.pipe.scheduler.config.get
        low = (get("base_image_seq_len", 256), get("base_shift", 0.5))
        high = (get("max_image_seq_len", 4096), get("max_shift", top))
        return math.log(resolution_shift(tokens=tokens, low=low, high=high))

    def sigmas(self, steps: int, height: int, width: int) -> Tensor:
        """Read off a copy of the pipeline's scheduler, which rounds them to float32; here as float64 [S+1]."""
        if steps < 1:
            raise UserError(f"sigmas: steps must be at least 1, got {steps}")
        self.check_size(height, width)
        scheduler = copy.deepcopy(self.pipe.scheduler)
        with np.errstate(all="ignore"):  # what cannot be divided is refused below
            scheduler.set_timesteps(device="cpu", **self._timetable(steps, height, width))
        level_s: Tensor = scheduler.sigmas.double()
        if len(level_s) != steps + 1 or not bool((level_s[1:] < level_s[:-1]).all()):  # NaN is refused as well
            raise UserError(f"sigmas: the scheduler of {self.source} has no falling table of {steps} steps; take more")
        return level_s

    def _timestep(self, sigma: Level, x_n: Tensor) -> Tensor:
        """What the pipeline's scheduler calls a timestep; float32 [N]."""
        level_n = torch.as_tensor(sigma, dtype=torch.float32, device=x_n.device).expand(len(x_n))
        return level_n * self.pipe.scheduler.config.num_train_timesteps

    @abstractmethod
    def _forward(
        self, x_n: Tensor, sigma: Level, batch: Mapping[str, Tensor], *, height: int, width: int, scale: float | None
    ) -> Tensor:
        """The transformer's answer to x_n in the transformer's dtype."""

    def velocity(
        self, x_n: Tensor, sigma: Level, batch: Mapping[str, Tensor], *, height: int, width: int, scale: float | None
    ) -> Tensor:
        """In the dtype of x_n. Raises ValueError for a scale that is missing or that the network does not take."""
        if (scale is not None) != (self.guidance == "embedded"):
            raise ValueError(f"guidance {self.guidance}: scale must be {'a number' if scale is None else 'None'}")
        x = x_n.to(first_dtype(self.transformer))
        return self._forward(x, sigma, batch, height=height, width=width, scale=scale).to(x_n.dtype)

    def _unscaled(self, x_n: Tensor, *, height: int, width: int) -> Tensor:
        """Latents as the decoder takes them."""
        config = self.pipe.vae.config
        return x_n / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def decode(self, x_n: Tensor, *, height: int, width: int) -> Tensor:
        """NaN in the decoder's answer becomes 0; count non-finite latents before."""
        vae = self.pipe.vae
        latent = self._unscaled(x_n.to(self.device, torch.float32), height=height, width=width)
        picture = vae.decode(latent.to(first_dtype(vae)), return_dict=False)[0].float()
        if picture.dim() == 5:  # a video decoder: one frame
            picture = picture[:, :, 0]
        return (picture / 2 + 0.5).clamp(0, 1).nan_to_num(nan=0.0)

    def _scaled(self, latent: Tensor) -> Tensor:
        """Latents of the encoder as the transformer takes them."""
        config = self.pipe.vae.config
        return (latent - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    @torch.no_grad()
    def from_picture(self, picture: Any, *, height: int, width: int) -> Tensor:
        """The most likely latent (no noise is drawn); float32, on the CPU. Raises UserError for another size."""
        self.check_size(height, width)
        pixels = pixels_of(picture, height=height, width=width)
        vae = self.pipe.vae
        found = vae.encode(self._frames(pixels[None].to(self.device, vae.dtype) * 2 - 1))
        latent = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
        return self._scaled(latent.float())[0].cpu()

    def _frames(self, picture_n: Tensor) -> Tensor:
        """Pictures as the VAE takes them."""
        return picture_n
