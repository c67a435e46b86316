"""What no single key of a configuration shows: settings of this family that cannot work together. Loads no torch."""

from __future__ import annotations

from dlm.config import Sampling
from dlm.likelihood import registry
from mmrl import config_io
from mmrl.config import Config
from mmrl.errors import UserError


def check(config: Config) -> None:
    """Raises UserError, before weights load."""
    own = config.sampling if isinstance(config.sampling, Sampling) else Sampling.model_validate(config.sampling or {})
    estimator = registry.make(own.likelihood.name, own.likelihood.options)
    imitates = config_io.recipe_of(config).experience == "records"
    if own.cache in ("prefix", "dual") and estimator.needs_steps and not imitates:
        raise UserError(
            f"sampling.cache: {own.cache} is approximate, so the likelihood of a trajectory (likelihood "
            f"{own.likelihood.name}) would not be the sampler's; set it to off, or to block for block attention"
        )
    if own.rule == "steps" and own.steps is not None and own.steps > own.max_new_tokens:
        raise UserError(
            f"sampling.steps: {own.steps} steps for {own.max_new_tokens} positions; each step fills at least one"
        )
    if own.temperature == 0 and not imitates and config.train.group > 1:
        raise UserError("sampling.temperature: 0 makes all samples of a group alike; set it above 0 to train")
    if own.refresh and own.cache not in ("prefix", "dual"):
        raise UserError(f"sampling.refresh: only prefix and dual caches are refreshed, sampling.cache is {own.cache}")
    if own.rule == "steps" and any(component.name == "tpf" for component in config.rewards.components):
        raise UserError(
            "rewards.components: tpf beside sampling.rule: steps rewards long answers, not fast ones; use rule "
            "threshold or factor"
        )
