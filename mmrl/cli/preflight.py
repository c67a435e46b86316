"""Everything about a configuration that can be checked before weights are read: stages, options, rewards."""

from __future__ import annotations

import importlib

from mmrl.config import Config
from mmrl.errors import UserError


def problems(config: Config) -> list[str]:
    """One line per problem; empty when a run can start. Imports torch (stages are tensor functions)."""
    found = []
    for look in (_plugins, _stages, _selection, _rewards, _asked_of_rewards, _family):
        try:
            look(config)
        except UserError as error:
            if str(error) not in found:
                found.append(str(error))
    return found


def _plugins(config: Config) -> None:
    from mmrl.plugins import load_plugins

    load_plugins(config.plugins)


def _stages(config: Config) -> None:
    """Bind every stage of the recipe for the family's policy: unknown names and options, units that do not fit, and
    channels that the policy does not provide are refused."""
    from mmrl import families
    from mmrl.core import catalogue  # noqa: F401  (registers the stages)
    from mmrl.training.objectives import channels_of, of_run, optimiser_settings

    for module in families.family(config.family).extra_stages:
        importlib.import_module(module)
    recipe, kind, _, _ = of_run(config)
    for channel in channels_of(recipe, kind):
        optimiser_settings(config, recipe, channel)


def _selection(config: Config) -> None:
    from mmrl.selection.base import find as find_selector

    find_selector(config.selection.name, config.selection.options)


def _rewards(config: Config) -> None:
    """Find every named reward and judge and check its options. `auto` depends on the records, so it is left to them."""
    from mmrl.rewards import registry

    for component in (*config.rewards.components, *config.eval.judges):
        if component.name != "auto":
            registry.bind_options(registry.find(component.name), component.options)


def _asked_of_rewards(config: Config) -> None:
    """What the selector asks of the policy, and what recipe and selector ask of the rewards; with `auto` the latter
    depends on the records and is left to them."""
    from mmrl.rewards.plan import make_plan
    from mmrl.training.objectives import check_requests, check_rewards, of_run

    recipe, kind, select, aims = of_run(config)
    check_requests(kind, select, config.selection.options)
    if all(component.name != "auto" for component in config.rewards.components):
        check_rewards(recipe, aims, select, config.selection.options, make_plan(config.rewards.components))


def _family(config: Config) -> None:
    """What the family itself refuses."""
    from mmrl.training.setup import check_family

    check_family(config)
