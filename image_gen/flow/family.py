"""Entry points of the family: load a policy from a configuration, evaluate it, give the embedded prompts."""

from __future__ import annotations

from pathlib import Path

from image_gen import stored
from image_gen.flow.check import check as check
from image_gen.flow.config import Inputs, Model, Sampling
from image_gen.flow.generate import generate as generate
from image_gen.flow.policy import FlowPolicy
from image_gen.pipelines.loading import load_image_model
from mmrl.config import Config, typed
from mmrl.data.records import Record
from mmrl.training.exported import Exported, Wanted

#: Its class attributes (unit, channels, provides) are read before any weights load.
POLICY: type[FlowPolicy] = FlowPolicy


def load_policy(config: Config) -> FlowPolicy:
    """Pipeline and adapter of `config.model`, on the configured device, ready to train."""
    sections = typed(config.model, Model), typed(config.sampling, Sampling), typed(config.inputs, Inputs)
    return load(*sections, device=config.device)


def load(options: Model, sampling: Sampling, inputs: Inputs, *, device: str = "auto") -> FlowPolicy:
    """The same from the three sections of this family."""
    ready = stored.prepared(options, load_image_model, device=device)
    return FlowPolicy(
        ready.model,
        options=options,
        sampling=sampling,
        inputs=inputs,
        without_adapter=ready.without_adapter,
        base=ready.base,
    )


def evaluate(policy: FlowPolicy, records: list[Record], config: Config) -> dict[str, float]:
    """Reward, judge and diversity of held-out prompts."""
    from image_gen.evaluate import evaluate as run

    return run(policy, records, config)


def first_look(policy: FlowPolicy, records: list[Record], config: Config) -> tuple[dict[str, float], list[str]]:
    """The same, with a line for each thing that such an evaluation cannot tell."""
    from image_gen.evaluate import first_look as run

    return run(policy, records, config)


def export(config: Config, out: Path, wanted: Wanted, record: Record) -> Exported:
    """A folder that plain diffusers loads, compared with the model as the run evaluates it."""
    from image_gen.flow.export import export as run

    return run(config, out, wanted, record)


def builtin(name: str) -> list[Record]:
    """Embedded prompts, e.g. digits:class."""
    from image_gen.embedded.prompts import builtin as make

    return make(name)


def chance(records: list[Record], config: Config) -> dict[str, float]:
    """The best constant picture's level of the judge, where it is known: the embedded tasks."""
    from image_gen.embedded.prompts import chance as level

    return level(records)
