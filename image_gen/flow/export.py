"""A trained flow-matching model for use without this package: a diffusers LoRA folder, or a whole pipeline's folder."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from image_gen import exporting
from image_gen.flow import plain_usage
from image_gen.flow.config import Inputs, Model, Sampling
from image_gen.flow.reload import FlowProbe
from image_gen.pipelines.base import ImageModel
from image_gen.pipelines.loading import load_image_model
from image_gen.stored import NOTE
from mmrl import config_io
from mmrl.config import Config, typed
from mmrl.data.records import Record
from mmrl.training.exported import Exported, Wanted, Words

WORDS = Words(
    outputs="velocities",
    results="Pictures of the noiseless sampler for the held-out prompts",
    constant="the best constant picture",
    samples="pictures",
    units="trained denoising steps",
    wording="Write prompts as the training prompts are written: a model trained by reward knows their wording best.",
    names_base=NOTE,
)


def export(config: Config, out: Path, wanted: Wanted, record: Record) -> Exported:
    """Write the model of `config.model.path` into the new folder `out`: the adapter alone, or the whole pipeline.

    Velocities at a few noise levels, and for diffusers pipelines a picture of the noiseless sampler, are compared for
    the prompt of `record` (`image_gen.exporting`). Raises UserError when they differ.
    """
    options, sampling, inputs = _sections(config)
    base = exporting.base_below(options, wanted)
    model = exporting.opened(options, base, load_image_model)
    prompt = record.prompt if isinstance(record.prompt, str) else ""
    probe = FlowProbe(model, prompt, height=inputs.height, width=inputs.width, guidance=_guidance(sampling))
    below = base or options.path
    source = exporting.source_of(model, below, embedded=_embedded(below))
    written = exporting.write(model, probe, out, wanted, family="flow", base=base, source=source)
    said = _said(config, model, prompt, base=base if wanted.adapter_only else None)
    del model  # the fresh process needs the room
    gc.collect()
    levels = f"{len(written.exact.outputs)} noise levels of the prompt of record {record.id!r}"
    return exporting.compare(written, probe, out, compared=levels, words=WORDS, library="diffusers", said=said)


def _sections(config: Config) -> tuple[Model, Sampling, Inputs]:
    """The sections of the family, also of a configuration that was made in Python."""
    return typed(config.model, Model), typed(config.sampling, Sampling), typed(config.inputs, Inputs)


def _guidance(sampling: Sampling) -> float:
    """Of the evaluation."""
    return sampling.guidance if sampling.eval_guidance is None else sampling.eval_guidance


def _embedded(path: str) -> Path:
    from image_gen.embedded import model

    return model.FOLDER / model.NAMES.get(path, path)


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
