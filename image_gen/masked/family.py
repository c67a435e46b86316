"""Entry points of the family: load a policy from a configuration, evaluate it, give the embedded prompts."""

from __future__ import annotations

from pathlib import Path

from image_gen import stored
from image_gen.masked.check import check as check
from image_gen.masked.config import Inputs, Model, Sampling
from image_gen.masked.generate import generate as generate
from image_gen.masked.models.loading import load_token_model
from image_gen.masked.policy import MaskedPolicy
from image_gen.masked.schedule.beside import schedule_of
from mmrl.config import Config, typed
from mmrl.data.records import Record
from mmrl.training.exported import Exported, Wanted

#: Its class attributes (unit, channels, provides) are read before any weights load.
POLICY: type[MaskedPolicy] = MaskedPolicy


def load_policy(config: Config) -> MaskedPolicy:
    """Model, adapter and schedule of `config.model`, on the configured device, ready to train."""
    sections = typed(config.model, Model), typed(config.sampling, Sampling), typed(config.inputs, Inputs)
    return load(*sections, device=config.device)


def load(options: Model, sampling: Sampling, inputs: Inputs, *, device: str = "auto") -> MaskedPolicy:
    """The same from the three sections of this family. A schedule stored beside the weights is taken as it is."""
    ready = stored.prepared(options, load_token_model, device=device)
    size = (inputs.height, inputs.width)
    schedule = schedule_of(options, ready.model, steps=sampling.steps, size=size)
    where = next(ready.model.transformer.parameters()).device
    return MaskedPolicy(
        ready.model,
        schedule.to(where),
        options=options,
        sampling=sampling,
        inputs=inputs,
        without_adapter=ready.without_adapter,
        base=ready.base,
    )


def evaluate(policy: MaskedPolicy, records: list[Record], config: Config) -> dict[str, float]:
    """Reward, judge and diversity of held-out prompts, and their curve over step counts."""
    from image_gen.masked.evaluate import evaluate as run

    return run(policy, records, config)


def first_look(policy: MaskedPolicy, records: list[Record], config: Config) -> tuple[dict[str, float], list[str]]:
    """The same, with a line for each thing that such an evaluation cannot tell."""
    from image_gen.masked.evaluate import first_look as run

    return run(policy, records, config)


def compared(
    before: dict[str, float], after: dict[str, float]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Both, with the smallest number of steps that reaches the start's quality."""
    from image_gen.masked.evaluate import compared as run

    return run(before, after)


def export(config: Config, out: Path, wanted: Wanted, record: Record) -> Exported:
    """A folder that plain diffusers loads, with the schedule beside it, compared with the model as it is evaluated."""
    from image_gen.masked.export import export as run

    return run(config, out, wanted, record)


def builtin(name: str) -> list[Record]:
    """Embedded prompts, e.g. digits:class."""
    from image_gen.embedded.prompts import builtin as make

    return make(name)


def chance(records: list[Record], config: Config) -> dict[str, float]:
    """The best constant picture's level of the judge, where it is known: the embedded tasks."""
    from image_gen.embedded.prompts import chance as level

    return level(records)
