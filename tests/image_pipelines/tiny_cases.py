"""The four tiny pipelines, how plain diffusers samples them, and the same loop through our adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_gen.pipelines.base import ImageModel
from image_gen.pipelines.loading import load_image_model

CPU = torch.device("cpu")
PROMPTS = ["two sevens", "a three left of a five"]
HEIGHT, WIDTH = 64, 32


@dataclass(frozen=True)
class Case:
    """options: for the plain call. weight: of classifier-free guidance. scale: of embedded guidance."""

    kind: str
    sizes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    scale: float | None = None


CASES = {
    "sd3": Case("StableDiffusion3Pipeline", options={"guidance_scale": 4.5}, weight=4.5),
    "flux": Case("FluxPipeline", options={"guidance_scale": 3.5}, scale=3.5),
    "schnell": Case(
        "FluxPipeline", {"guidance_embeds": False}, {"true_cfg_scale": 2.0, "negative_prompt": ["", ""]}, 2.0
    ),
    "sana": Case("SanaPipeline", options={"guidance_scale": 4.5, "use_resolution_binning": False}, weight=4.5),
    "qwen": Case("QwenImagePipeline", options={"true_cfg_scale": 1.0}),
}


def load(folder: Path, **dtypes: Any) -> Any:
    return load_image_model(str(folder), **{"dtype": torch.float32, "device": CPU, **dtypes})


def plain(folder: Path) -> Any:
    """The pipeline as anybody loads it; Sana's solver at first order, which is the Euler step."""
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if type(pipe).__name__ == "SanaPipeline":
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver_order=1)
    return pipe


def noise(model: Any, *, n: int = 2) -> Tensor:
    return torch.randn(n, *model.latent_shape(HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1))


def draw_plain(pipe: Any, case: Case, start: Tensor, *, steps: int = 3, output: str = "pt") -> Tensor:
    found: Tensor = pipe(
        PROMPTS,
        latents=start.clone(),
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=steps,
        output_type=output,
        **case.options,
    ).images
    return found


@torch.no_grad()
def walk(model: ImageModel, case: Case, x_n: Tensor, *, steps: int = 3) -> Tensor:
    """Euler steps of the mixed velocity."""
    told, untold = model.collate(model.encode(PROMPTS)), model.collate(model.encode(["", ""]))
    sigma_s = model.sigmas(steps, HEIGHT, WIDTH)
    for s in range(steps):
        v_n = velocity(model, case, x_n, float(sigma_s[s]), told)
        if case.weight != 1:
            v_u = velocity(model, case, x_n, float(sigma_s[s]), untold)
            v_n = v_u + case.weight * (v_n - v_u)
        x_n = x_n + float(sigma_s[s + 1] - sigma_s[s]) * v_n
    return x_n


def velocity(model: ImageModel, case: Case, x_n: Tensor, sigma: float | Tensor, batch: dict[str, Tensor]) -> Tensor:
    return model.velocity(x_n, sigma, batch, height=HEIGHT, width=WIDTH, scale=case.scale)
