"""A trained masked-image model for use without this package: aMUSEd's folder or a LoRA, its schedule beside it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from image_gen import exporting
from image_gen.masked import plain_usage
from image_gen.masked.config import Inputs, Model, Sampling
from image_gen.masked.models.amused import Amused
from image_gen.masked.models.base import TokenModel
from image_gen.masked.models.loading import load_token_model
from image_gen.masked.reload import MaskedProbe
from image_gen.masked.schedule import beside
from image_gen.masked.schedule.base import Schedule
from image_gen.memory import EMBEDDED
from image_gen.stored import NOTE
from mmrl import config_io
from mmrl.config import Config, typed
from mmrl.data.records import Record
from mmrl.training.exported import Exported, Wanted, Words

WORDS = Words(
    outputs="logits",
    results="Pictures by the mean of the schedule for the held-out prompts",
    constant="the best constant picture",
    samples="pictures",
    units="trained tokens and schedule actions",
    wording="Write prompts as the training prompts are written: a model trained by reward knows their wording best.",
    names_base=NOTE,
)


def export(config: Config, out: Path, wanted: Wanted, record: Record) -> Exported:
    """Write the model of `config.model.path` into the new folder `out`: the adapter alone, or all weights in aMUSEd's
    layout; the schedule policy in `schedule/` either way.

    The logits of a half-open canvas with and without the prompt of `record`, the picture of a whole canvas, and what
    the schedule holds are compared (`image_gen.exporting`). Raises UserError when they differ.
    """
    options, sampling, inputs = _sections(config)
    base = exporting.base_below(options, wanted)
    model = exporting.opened(options, base, load_token_model)
    schedule = beside.schedule_of(options, model, steps=sampling.steps, size=(inputs.height, inputs.width))
    prompt = record.prompt if isinstance(record.prompt, str) else ""
    probe = MaskedProbe(model, schedule, prompt, height=inputs.height, width=inputs.width)
    below = base or options.path
    source = exporting.source_of(model, below, embedded=EMBEDDED / below.removeprefix("embedded:"))
    written = exporting.write(model, probe, out, wanted, family="masked", base=base, source=source)
    schedule.save(out / beside.FOLDER)
    said = _said(config, model, schedule, prompt, base=base if wanted.adapter_only else None)
    library = "diffusers" if isinstance(model, Amused) else "mmrl"
    del model  # the fresh process needs the room
    gc.collect()
    what = f"a half-open canvas with and without the prompt of record {record.id!r}"
    return exporting.compare(written, probe, out, compared=what, words=WORDS, library=library, said=said)


def _sections(config: Config) -> tuple[Model, Sampling, Inputs]:
    """The sections of the family, also of a configuration that was made in Python."""
    return typed(config.model, Model), typed(config.sampling, Sampling), typed(config.inputs, Inputs)


def _said(config: Config, model: TokenModel, schedule: Schedule, prompt: str, *, base: str | None) -> dict[str, Any]:
    """usage, notes and settings for the model card."""
    _, sampling, inputs = _sections(config)
    scale = model.guidance if sampling.guidance is None else sampling.guidance
    steps = f"{plain_usage.steps_of(sampling)} in evaluation"
    if config_io.recipe_of(config).experience != "records":
        steps = f"{sampling.steps} in training, {steps}"
    learned = "hand-made" if schedule.at_base else f"learned ({', '.join(schedule.options.learn)})"
    how = f"{schedule.options.kind}, {learned}, trained at {schedule.steps} steps"
    settings = [
        ("picture size", f"{inputs.height} x {inputs.width} (height x width)"),
        ("decoding steps", steps),
        ("guidance", f"{scale:g} in the hand-made schedule"),
        ("schedule", how + (f", smoothed {schedule.options.smooth:g}" if schedule.options.smooth else "")),
    ]
    return {
        "usage": plain_usage.code(
            model, schedule, sampling, prompt=prompt, base=base, height=inputs.height, width=inputs.width
        ),
        "notes": tuple(plain_usage.remarks(model, schedule)),
        "settings": tuple(settings),
    }
