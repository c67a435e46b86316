"""Imitation: the flow-matching loss on given pictures. Axes: n pictures, then the latent's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from image_gen.flow.steps import row_mean


@dataclass
class Picture:
    """One picture at one level of noise: x_sigma = (1 - sigma) x0 + sigma noise; the target velocity is noise - x0."""

    prompt: str
    latent: Tensor
    noise: Tensor
    sigma: float

    @property
    def state(self) -> Tensor:
        return (1 - self.sigma) * self.latent + self.sigma * self.noise


def noised(latent: Tensor, *, prompt: str, generator: torch.Generator) -> Picture:
    """sigma = sigmoid(z), z ~ N(0, 1), as SD3 was trained (logit-normal, arXiv 2403.03206). All on the CPU."""
    sigma = float(torch.sigmoid(torch.randn((), generator=generator)))
    return Picture(prompt, latent, torch.randn(latent.shape, generator=generator), sigma)


def squared_error(
    pictures: list[Picture], velocity: Callable[[Tensor, float | Tensor], Tensor], device: torch.device
) -> Tensor:
    """MEAN over the elements of (v - (noise - x0))^2. [n]. Gradient through v."""
    x_n = torch.stack([p.state for p in pictures]).to(device)
    target_n = torch.stack([p.noise - p.latent for p in pictures]).to(device)
    sigma_n = torch.tensor([p.sigma for p in pictures], dtype=x_n.dtype, device=device)
    return row_mean((velocity(x_n, sigma_n) - target_n).square())
