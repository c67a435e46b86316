"""A trained image model for use without this package: a diffusers LoRA folder, or the folder of a whole pipeline."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch

from image_gen.flow import plain_usage
from image_gen.flow.config import Inputs, Model, Sampling
from image_gen.flow.reload import PICTURE_TOLERANCE, Measured, Probe
from image_gen.pipelines import lora
from image_gen.pipelines.base import ImageModel
from image_gen.pipelines.common import DiffusersModel
from image_gen.pipelines.loading import load_image_model
from image_gen.stored import NOTE, base_of, is_lora
from mmrl import config_io
from mmrl.config import Config
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.exported import Compared, Exported, Wanted, Words, looks_local

WORDS = Words(
    outputs="velocities",
    results="Pictures of the noiseless sampler for the held-out prompts",
    constant="the best constant picture",
    samples="pictures",
    units="trained denoising steps",
    wording="Write prompts as the training prompts are written: a model trained by reward knows their wording best.",
    names_base=NOTE,
)
PICTURES = "pictures (0 black, 1 white)"
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def export(config: Config, out: Path, wanted: Wanted, record: Record) -> Exported:
    """Write the model of `config.model.path` into the new folder `out`: the adapter alone, or the whole pipeline.

    All arithmetic is in float32 on the CPU. Velocities at a few noise levels, and for diffusers pipelines a picture of
    the noiseless sampler, are compared for the prompt of `record` with those of the model as the run evaluates it:
    after fusing the adapter, and again in a fresh process. Raises UserError when they differ.
    """
    options, sampling, inputs = _sections(config)
    base = _base(options, wanted)
    model: Any = _load(options, base)
    prompt = record.prompt if isinstance(record.prompt, str) else ""
    probe = Probe(model, prompt, height=inputs.height, width=inputs.width, guidance=_guidance(sampling))
    stored = _stored_dtype(_folder(model, base or options.path))
    if base is not None and not wanted.adapter_only:
        lora.merge(model)
    now = probe.measure(model)
    moved = _same(probe, probe.expected, now, "fusing the adapter changed what the model draws")
    dtype = getattr(torch, wanted.dtype) if wanted.dtype else torch.float32 if wanted.adapter_only else stored
    size = _save(model, out, dtype=dtype, wanted=wanted, base=base)
    exact = now if dtype == torch.float32 else probe.measure(model)
    said = _said(config, model, prompt, base=base if wanted.adapter_only else None)
    architecture, task = type(model.transformer).__name__, probe.task(model)
    below = _folder(model, str(base)) if wanted.adapter_only else None
    del model  # the fresh process needs the room
    gc.collect()
    again = probe.reloaded(out, base=below, task=task)
    found = _same(probe, exact, again, "the exported folder draws something else in plain diffusers")
    return Exported(
        form="adapter" if wanted.adapter_only else "full" if base is None else "merged",
        dtype=str(dtype).removeprefix("torch."),
        architecture=architecture,
        parameters=size,
        base=base,
        library="diffusers",
        pipeline="text-to-image",
        difference=max(found[0], moved[0]),
        tolerance=probe.tolerance,
        rounding=None if dtype == torch.float32 else probe.expected.apart(exact)[0],
        compared=f"{len(exact.velocities)} noise levels of the prompt of record {record.id!r}",
        further=() if found[1] is None else (Compared(PICTURES, max(found[1], moved[1] or 0.0), PICTURE_TOLERANCE),),
        words=WORDS,
        **said,
    )


def _sections(config: Config) -> tuple[Model, Sampling, Inputs]:
    """The sections of the family, also of a configuration that was made in Python."""
    sampling, inputs = config.sampling or {}, config.inputs or {}
    return (
        config.model if isinstance(config.model, Model) else Model.model_validate(config.model),
        sampling if isinstance(sampling, Sampling) else Sampling.model_validate(sampling),
        inputs if isinstance(inputs, Inputs) else Inputs.model_validate(inputs),
    )


def _guidance(sampling: Sampling) -> float:
    """Of the evaluation."""
    return sampling.guidance if sampling.eval_guidance is None else sampling.eval_guidance


def _base(options: Model, wanted: Wanted) -> str | None:
    """What a stored LoRA was trained on; None for a whole model. Raises UserError for options that do not fit it."""
    if not is_lora(options.path):
        if wanted.adapter_only:
            raise UserError(
                "--adapter-only: this run trained the model itself, there is no adapter; leave the option out"
            )
        if options.base is not None:
            raise UserError(f"model.base: {options.path!r} is a whole model, which needs no base; leave --base out")
        return None
    base = base_of(options)
    if looks_local(base) and not Path(base).expanduser().exists():
        raise UserError(f"the LoRA {options.path!r} was trained on {base!r}, which is not there; say where with --base")
    return base


def _load(options: Model, base: str | None) -> ImageModel:
    model = load_image_model(base or options.path, dtype=torch.float32, device=torch.device("cpu"))
    if base is not None:
        model.load_lora(Path(options.path))
    model.transformer.eval()
    return model


def _folder(model: ImageModel, path: str) -> Path:
    """Where the model lies on this machine: a download and an embedded model have places of their own."""
    if isinstance(model, DiffusersModel):
        return model.source
    if path.startswith("embedded:"):
        from image_gen.embedded import model as embedded

        return embedded.FOLDER / embedded.NAMES[path]
    return Path(path)


def _stored_dtype(folder: Path) -> torch.dtype:
    """The type of the transformer's weights on disk."""
    from safetensors import safe_open

    inner = folder / "transformer"
    for file in sorted((inner if inner.is_dir() else folder).glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (no mapping)
                return _STORED.get(opened.get_slice(name).get_dtype(), torch.float32)
    return torch.float32


def _save(model: ImageModel, out: Path, *, dtype: torch.dtype, wanted: Wanted, base: str | None) -> int:
    """Write the folder, what was trained in `dtype`; the model is left in float32 with the values that were written.
    Returns the numbers written of the transformer."""
    written = [p for n, p in model.transformer.named_parameters() if not wanted.adapter_only or ".lora_" in n]
    if dtype != torch.float32:
        for parameter in written:
            parameter.data = parameter.data.to(dtype)
    if wanted.adapter_only:
        model.save_lora(out)
        note = {"family": "flow", "base": base}
        (out / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    else:
        model.save(out, max_shard_size=wanted.max_shard_size)
    for parameter in written:
        parameter.data = parameter.data.float()
    return sum(p.numel() for p in written)


def _same(probe: Probe, before: Measured, after: Measured, what: str) -> tuple[float, float | None]:
    """How far velocities and pictures are apart. Raises UserError beyond the tolerances."""
    velocities, pictures = before.apart(after)
    if not velocities <= probe.tolerance:
        raise UserError(
            f"{what}: its velocities differ by {velocities:.2g} (tolerance {probe.tolerance:.2g}) for the prompt "
            f"{probe.prompt[:60]!r}; nothing was exported"
        )
    if pictures is not None and not pictures <= PICTURE_TOLERANCE:
        raise UserError(
            f"{what}: its pictures differ by {pictures:.2g} (tolerance {PICTURE_TOLERANCE:g}, black is 0 and white 1) "
            f"for the prompt {probe.prompt[:60]!r}; nothing was exported"
        )
    return velocities, pictures


def _said(config: Config, model: ImageModel, prompt: str, *, base: str | None) -> dict[str, Any]:
    """usage, notes and settings for the model card."""
    _, sampling, inputs = _sections(config)
    scale = _guidance(sampling)
    steps, guidance = f"{sampling.eval_steps} in evaluation", f"{scale:g} in evaluation"
    settings = [("picture size", f"{inputs.height} x {inputs.width} (height x width)")]
    if config_io.recipe_of(config).experience != "records":
        steps, guidance = f"{sampling.steps} in training, {steps}", f"{sampling.guidance:g} in training, {guidance}"
        noise = f"{sampling.rule}, level {sampling.noise:g}, steps: {sampling.window.name}"
        settings.append(("noise in training", noise))
    settings += [("denoising steps", steps), ("guidance", guidance)]
    return {
        "usage": plain_usage.code(
            model,
            prompt=prompt,
            base=base,
            height=inputs.height,
            width=inputs.width,
            steps=sampling.eval_steps,
            scale=scale,
        ),
        "notes": tuple(plain_usage.remarks(model, scale)),
        "settings": tuple(settings),
    }
