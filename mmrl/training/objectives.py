"""The objective of a recipe for a policy and a selector: what is checked before weights load and used after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mmrl import config_errors, config_io, families
from mmrl.config import Config, Optimiser
from mmrl.core.objective import Objective
from mmrl.core.recipe import Recipe
from mmrl.errors import UserError
from mmrl.rewards.plan import Component
from mmrl.selection.base import Selector
from mmrl.selection.base import find as find_selector
from mmrl.training.policy import Policy, offered


def channels_of(recipe: Recipe, policy: Policy | type[Policy]) -> list[str]:
    """The channels that a run trains: those of the phases, else the policy's main one. Raises UserError for one that
    the policy does not have."""
    found = sorted({name for name, _ in recipe.phases}) or [policy.channels[0]]
    for name in found:
        if name not in policy.channels:
            raise UserError(
                f"recipe {recipe.slug}: trains channel {name!r}, but this family has {', '.join(policy.channels)}; "
                "choose a recipe of this family"
            )
    return found


def objectives(
    recipe: Recipe, policy: Policy | type[Policy], selector: Selector | type[Selector]
) -> dict[str, Objective]:
    """One per trained channel. Raises UserError for whatever cannot work together."""
    return {
        channel: Objective(
            recipe,
            channel=channel,
            unit=policy.unit,
            provides=offered(policy, channel),
            keys=policy.keys | selector.keys,
            segments=policy.segments,
            dense=policy.dense,
            reduces=policy.reduces,
        )
        for channel in channels_of(recipe, policy)
    }


def of_run(config: Config) -> tuple[Recipe, type[Policy], type[Selector], dict[str, Objective]]:
    """The recipe as the family's policy takes it, the classes of policy and selector, and the objectives: no weights
    load. Plug-ins and native stages of the family are loaded before. Raises UserError as `objectives` does."""
    kind: type[Policy] = families.policy_class(config)
    recipe = config_io.recipe_of(config, kind.unit)
    select = find_selector(config.selection.name, config.selection.options)
    return recipe, kind, select, objectives(recipe, kind, select)


def check_rewards(
    recipe: Recipe,
    objectives: Mapping[str, Objective],
    select: type[Selector],
    options: Mapping[str, Any],
    plan: Sequence[Component],
) -> None:
    """What recipe and selector (with its options) ask of the rewards is there: components by name, one that says which
    answers are right. Called before weights load. Raises UserError."""
    scored = [] if recipe.experience == "records" else plan  # demonstrations are not scored
    correct = any(component.success is not None for component in scored)
    asking = next((name for o in objectives.values() if (name := o.needs_correct)), None)
    if asking and not correct:
        raise UserError(
            f"recipe {recipe.slug}: stage {asking!r} needs to know which answers are right; give one of "
            "rewards.components a `success`, the value from which on it counts"
        )
    select.check(options, columns=[name for component in scored for name in component.columns], correct=correct)


def check_requests(policy: Policy | type[Policy], select: type[Selector], options: Mapping[str, Any]) -> None:
    """What the selector's requests ask of the policy's inputs is there. Raises UserError."""
    for name, advice in select.input_options(options).items():
        if name not in policy.INPUT_OPTIONS:
            raise UserError(f"selection: its requests set {name}, which this family's policy does not have; {advice}")


def optimiser_settings(config: Config, recipe: Recipe, channel: str) -> Optimiser:
    """The run's optimiser with what the recipe says of this channel on top. Raises UserError for unknown settings."""
    own = recipe.channel(channel).optimiser
    try:
        return Optimiser.model_validate({**config.optimiser.model_dump(), **own})
    except ValidationError as error:
        problems = config_errors.lines(error, Optimiser, prefix="optimiser")
        raise UserError(f"recipe {recipe.slug}: {config_errors.join(problems)}") from None


def gap_tolerance(objective: Objective, own: float) -> float:
    """Largest sampler gap without a warning: train.ratio_tolerance, but where log-probs are means over elements no more
    than the clip, which is tiny there (nor less than 1e-5, what float32 allows)."""
    width = objective.narrowest_clip()
    return own if objective.unit != "element-mean" or width is None else max(1e-5, min(own, width))
