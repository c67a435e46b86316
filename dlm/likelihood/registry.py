"""Estimators by name. Reading this table loads no torch; making an estimator does."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from mmrl.errors import UserError, nearest

if TYPE_CHECKING:
    from dlm.likelihood.base import Estimator

Unit = Literal["row", "decision"]


@dataclass(frozen=True)
class Entry:
    """`path`: module:class. `unit`: see `Estimator.unit`."""

    path: str
    unit: Unit


ESTIMATORS: dict[str, Entry] = {
    "sdmc": Entry("dlm.likelihood.sdmc:SDMC", "row"),
    "mc": Entry("dlm.likelihood.monte_carlo:MonteCarlo", "row"),
    "strat_mc": Entry("dlm.likelihood.monte_carlo:StratifiedMonteCarlo", "row"),
    "elbo": Entry("dlm.likelihood.elbo:Elbo", "row"),
    "complementary": Entry("dlm.likelihood.complementary:Complementary", "row"),
    "one_step": Entry("dlm.likelihood.one_step:OneStep", "decision"),
    "trajectory": Entry("dlm.likelihood.trajectory:Trajectory", "decision"),
    "coupled": Entry("dlm.likelihood.complementary:Coupled", "decision"),
    "random_masking": Entry("dlm.likelihood.complementary:RandomMasking", "decision"),
}

#: What people call them.
_HINTS = {
    "gdpo": "the likelihood of GDPO (diffusion) is 'sdmc'; the other GDPO, of several rewards, has no likelihood",
    "espo": "the estimator of ESPO is 'complementary'",
    "diffu-grpo": "the estimator of diffu-GRPO is 'one_step'",
    "d1": "the estimator of d1 is 'one_step'",
}


def make(name: str, options: Mapping[str, Any] | None = None) -> Estimator:
    """The estimator with its options. UserError for an unknown name, option or value, with the nearest valid one."""
    entry = _find(name)
    module, _, found = entry.path.partition(":")
    build = getattr(import_module(module), found)
    given = dict(options or {})
    valid = inspect.signature(build).parameters
    for option in given:
        if option not in valid:
            raise UserError(f"likelihood {name}: unknown option {option!r}{nearest(str(option), valid)}")
    return build(**given)  # type: ignore[no-any-return]


def unit_of(name: str, options: Mapping[str, Any] | None = None) -> Unit:
    """What one value of the estimate stands for: the row (only sums mean something) or a decision. No options change
    it. UserError for an unknown name."""
    return _find(name).unit


def _find(name: str) -> Entry:
    if name in ESTIMATORS:
        return ESTIMATORS[name]
    hint = _HINTS.get(str(name).lower())
    raise UserError(f"likelihood: unknown estimator {name!r}" + (f"; {hint}" if hint else nearest(name, ESTIMATORS)))
