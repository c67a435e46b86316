"""The lazy table of model families: names to modules, nothing imported until asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mmrl.errors import UserError, nearest


@dataclass(frozen=True)
class Family:
    """`config` loads no torch and defines `Model`, `Sampling` and `Inputs`; `entry` defines the functions below.

    entry.load_policy(config) -> Policy         from a resolved `mmrl.config.Config`
    entry.evaluate(policy, records, config) -> dict[str, float]   greedy metrics of held-out records
    entry.first_look(policy, records, config) -> (the same metrics, lines of advice)    optional; before training
    entry.compared(before, after) -> (before, after)    optional; what a summary says of two evaluations together
    entry.builtin(name) -> list[Record]         embedded data sets, e.g. "digits:train"
    entry.chance(records, config) -> dict[str, float]             level of the best constant answer
    entry.export(config, out, wanted, record) -> Exported         optional; a folder that its ecosystem loads
    entry.generate(checkpoint, *, <options of the command that the family takes>) -> list[Path]     optional
    entry.look(record, config, *, whole)        optional; when records are read: its files opened, with `whole` all that
                                                will be seen of them; UserError for one that cannot be used. Without
                                                a configuration (None) by the defaults
    entry.check(config)                         optional; what no single key shows, before weights load
    config.memory_lines(config, recipe, *, ranks) -> list[str]    optional; the memory estimate of a dry run
    config.piece_lines(config, *, rows) -> list[str]    optional; how a dry run tells the pieces of an update
    config.QUICKSTART                           optional; part -> configuration of a quickstart of several runs, and
    entry.joined(summaries by part) -> {"before", "after", "chance"}    what their common summary.json says
    config.REQUIRE, config.DEMONSTRATION        optional; what a record must have to be rewarded, to be imitated
    entry.POLICY                                the policy class: unit, channels and provides are read before loading
    entry.policy_class(config) -> type[Policy]  instead of POLICY, where those depend on the configuration
    """

    name: str
    config: str
    entry: str
    extra_stages: tuple[str, ...] = ()  # modules that register stages native to the family


FAMILIES = {
    "vlm": Family("vlm", config="mmrl.vlm.config", entry="mmrl.vlm.family"),
    "flow": Family(
        "flow",
        config="image_gen.flow.config",
        entry="image_gen.flow.family",
        extra_stages=("image_gen.flow.stages", "image_gen.rewards.catalogue", "image_gen.embedded.rewards"),
    ),
    "masked": Family(
        "masked",
        config="image_gen.masked.config",
        entry="image_gen.masked.family",
        extra_stages=("image_gen.rewards.catalogue", "image_gen.embedded.rewards"),
    ),
    "video": Family(
        "video",
        config="video.config",
        entry="video.family",
        extra_stages=("video.rewards.catalogue",),
    ),
    "dlm": Family(
        "dlm",
        config="dlm.config",
        entry="dlm.family",
        extra_stages=("dlm.rewards.catalogue",),
    ),
}


def register(one: Family) -> None:
    """For plug-ins: a family of one's own. Raises UserError when the name is taken by another."""
    if FAMILIES.get(one.name, one) != one:
        raise UserError(f"family {one.name!r} exists already; choose another name")
    FAMILIES[one.name] = one


def family(name: str) -> Family:
    if name not in FAMILIES:
        raise UserError(f"family: unknown family {name!r}{nearest(name, FAMILIES)}")
    return FAMILIES[name]


def config_module(name: str) -> ModuleType:
    return importlib.import_module(family(name).config)


def entry(name: str) -> ModuleType:
    return importlib.import_module(family(name).entry)


def policy_class(config: Any) -> Any:
    """The policy class of a configuration, to be asked before any weights load."""
    module = entry(config.family)
    return module.policy_class(config) if hasattr(module, "policy_class") else module.POLICY
