"""How plain diffusers is asked for the pictures of an evaluation: keyword arguments, and code for people."""

from __future__ import annotations

from typing import Any

from image_gen import mmrl_usage
from image_gen.pipelines.base import ImageModel
from image_gen.pipelines.common import DiffusersModel
from mmrl.training.exported import public_name

#: Sana's published solver is of second order, the sampler here takes its first-order steps.
SCHEDULER: dict[str, dict[str, Any]] = {"SanaPipeline": {"solver_order": 1}}


def kind(model: ImageModel) -> str | None:
    """The pipeline class that loads the folder; None for a model that is no diffusers pipeline."""
    return type(model.pipe).__name__ if isinstance(model, DiffusersModel) else None


def scheduler(model: ImageModel) -> dict[str, Any]:
    """Settings of the pipeline's own scheduler with which its steps are those of the sampler here."""
    if not isinstance(model, DiffusersModel):
        return {}
    own = SCHEDULER.get(type(model.pipe).__name__, {})
    return {key: value for key, value in own.items() if key in model.pipe.scheduler.config}


def guidance(model: ImageModel, scale: float) -> dict[str, Any]:
    """The arguments that give a pipeline this guidance; plain pipelines mix nothing at scales up to 1."""
    name = kind(model)
    if name == "SanaPipeline":
        return {"guidance_scale": scale, "use_resolution_binning": False}
    if name == "QwenImagePipeline" or name == "FluxPipeline" and model.guidance != "embedded":
        return {"true_cfg_scale": scale, "negative_prompt": ""} if scale > 1 else {"true_cfg_scale": 1.0}
    return {"guidance_scale": scale}


def remarks(model: ImageModel, scale: float) -> list[str]:
    """What differs between the evaluation and the plain call, if anything does."""
    found = []
    if kind(model) is None:
        name = type(model.transformer).__name__
        found.append(f"This model is no pipeline of diffusers: only its transformer loads there, as {name}.")
    elif model.guidance == "classifier_free" and scale < 1:
        found.append(f"Evaluation mixed at guidance {scale:g}; pipelines of diffusers do not mix below 1.")
    elif kind(model) == "QwenImagePipeline" and scale > 1:
        found.append(
            "QwenImagePipeline scales its mix of the two halves to the length of the conditional one, which training "
            "and evaluation did not: its pictures equal theirs at true_cfg_scale 1 only."
        )
    return found


def code(model: ImageModel, *, prompt: str, base: str | None, height: int, width: int, steps: int, scale: float) -> str:
    """Python that loads the folder and draws a prompt. `base`: of an adapter. Texts are literals on one line."""
    if kind(model) is None:
        sampling = {"eval_steps": steps, "guidance": scale}
        return mmrl_usage.code("flow", prompt, alone=base is not None, sampling=sampling, height=height, width=width)
    lines = _loading(model, base)
    options = {"height": height, "width": width, "num_inference_steps": steps, **guidance(model, scale)}
    lines += [
        "picture = pipe(",
        f"    {mmrl_usage.literal(prompt)},",
        *(f"    {key}={value!r}," for key, value in options.items()),
        "    generator=torch.Generator().manual_seed(0),",
        ").images[0]",
        'picture.save("picture.png")',
    ]
    return "\n".join(lines)


def _loading(model: ImageModel, base: str | None) -> list[str]:
    name = kind(model)
    lines = [
        "import torch",
        f"from diffusers import {name}",
        "",
        'folder = "."  # this folder',
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        'dtype = torch.bfloat16 if device == "cuda" else torch.float32',
    ]
    if base is None:
        lines += [f"pipe = {name}.from_pretrained(folder, dtype=dtype).to(device)"]
    else:
        lines += [
            f"base = {ascii(public_name(base))}  # the model it was trained on",
            f"pipe = {name}.from_pretrained(base, dtype=dtype).to(device)",
            "pipe.load_lora_weights(folder)",
        ]
    if own := scheduler(model):
        settings = ", ".join(f"{key}={value!r}" for key, value in own.items())
        lines += [f"pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, {settings})"]
    return lines
