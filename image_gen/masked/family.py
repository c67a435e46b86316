"""Entry points of the family: load a policy from a configuration, evaluate it, give the embedded prompts."""

from __future__ import annotations

from pathlib import Path

from image_gen import stored
from image_gen.masked.check import check as check
from image_gen.masked.config import Inputs, Model, Sampling
from image_gen.masked.models.loading import load_token_model
from image_gen.masked.policy import SCHEDULE_FOLDER, MaskedPolicy
from image_gen.masked.schedule import storage
from image_gen.masked.schedule.base import Schedule
from mmrl.config import Config
from mmrl.data.records import Record
from mmrl.errors import UserError

#: Its class attributes (unit, channels, provides) are read before any weights load.
POLICY: type[MaskedPolicy] = MaskedPolicy


def load_policy(config: Config) -> MaskedPolicy:
    """Model, adapter and schedule of `config.model`, on the configured device, ready to train."""
    options = config.model if isinstance(config.model, Model) else Model.model_validate(config.model)
    sampling = (
        config.sampling if isinstance(config.sampling, Sampling) else Sampling.model_validate(config.sampling or {})
    )
    inputs = config.inputs if isinstance(config.inputs, Inputs) else Inputs.model_validate(config.inputs or {})
    return load(options, sampling, inputs, device=config.device)


def load(options: Model, sampling: Sampling, inputs: Inputs, *, device: str = "auto") -> MaskedPolicy:
    """The same from the three sections of this family. A schedule stored beside the weights is taken as it is."""
    ready = stored.prepared(options, load_token_model, device=device)
    grid = ready.model.grid(inputs.height, inputs.width)
    folder = Path(options.path) / SCHEDULE_FOLDER
    if folder.is_dir():
        schedule = storage.load(folder, feature_width=ready.model.feature_width, grid=grid)
        _take_stored_schedule(options, schedule)
    else:
        schedule = storage.make(
            options.schedule, steps=sampling.steps, feature_width=ready.model.feature_width, grid=grid
        )
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


def _take_stored_schedule(options: Model, schedule: Schedule) -> None:
    """A stored schedule keeps its settings: write them into the options, so that the run's own config.yaml tells what
    was trained. Raises UserError for values that were asked for and are not the stored ones."""
    for name in sorted(options.schedule.model_fields_set):
        asked, kept = getattr(options.schedule, name), getattr(schedule.options, name)
        if asked != kept:
            raise UserError(
                f"model.schedule.{name}: {asked} is asked for, the schedule stored with {options.path!r} has {kept}; "
                "it is trained further as it is, so leave the setting out"
            )
    options.schedule = schedule.options.model_copy(deep=True)


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


def builtin(name: str) -> list[Record]:
    """Embedded prompts, e.g. digits:class."""
    from image_gen.embedded.prompts import builtin as make

    return make(name)


def chance(records: list[Record], config: Config) -> dict[str, float]:
    """The best constant picture's level of the judge, where it is known: the embedded tasks."""
    from image_gen.embedded.prompts import chance as level

    return level(records)
