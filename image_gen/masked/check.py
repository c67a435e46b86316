"""What of a configuration of masked-image models can be refused before any weight is read."""

from __future__ import annotations

from image_gen import memory
from image_gen.masked.memory import shape_of
from mmrl import config_io
from mmrl.config import Config
from mmrl.errors import UserError

_RATE = "channels.schedule.optimiser.lr"


def check(config: Config) -> None:
    """Raises UserError where the recipe trains a schedule that draws no actions, for a hand-made schedule that is set
    although AdaNAT's formula takes its place, and for a picture size that the model cannot take (of the shapes that
    `--dry-run` knows; loading looks at every one)."""
    from image_gen.masked.policy import SCHEDULE, MaskedPolicy
    from mmrl.training.objectives import channels_of

    sampling = config.sampling
    shape = shape_of(config.model.path, config.model.base)
    if shape is not None and not config.model.path.startswith("embedded:"):
        memory.whole_steps(config, shape.unit)
    if config.model.schedule.base == "adanat":
        for name in ("mask_schedule", "remask_temperature", "sample_temperature"):
            if getattr(sampling, name) != type(sampling).model_fields[name].default:
                raise UserError(
                    f"sampling.{name}: AdaNAT's formula (model.schedule.base) says this itself; leave it out, or take "
                    "base scheduler"
                )
    if SCHEDULE not in channels_of(config_io.recipe_of(config), MaskedPolicy):
        return
    if sampling.steps < 2:
        raise UserError(
            f"sampling.steps: {sampling.steps} step leaves recipe {config.recipe!r} no action to train, for the last "
            "step has none; take 2 or more, or a recipe that trains tokens only (mask-grpo)"
        )
    shipped = not config.recipe.endswith((".yaml", ".yml"))
    if config.model.schedule.kind == "net" and shipped and _RATE not in config.recipe_options:
        raise UserError(
            f"model.schedule.kind: net: {_RATE} of recipe {config.recipe!r} is for a table of a few numbers; set it in "
            "recipe_options (AdaNAT trains its network at 1e-5)"
        )
    if not sampling.explore:
        raise UserError(
            f"sampling.explore: recipe {config.recipe!r} trains the schedule, which must draw its actions; set it to "
            "true, or take a recipe that trains tokens only (mask-grpo)"
        )
