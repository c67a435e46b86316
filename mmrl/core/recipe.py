"""Recipes: a published method as a choice of stages. Parsing only; the YAML files are read elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmrl.errors import UserError, nearest

Spec = dict[str, Any]

CHANNEL_KEYS = ("weight", "bounds", "gate", "penalties", "reduce", "optimiser")
TOP_KEYS = (
    *("title", "paper", "source", "reconstruction", "notes", "group", "experience"),
    *(
        "shape",
        "advantage",
        "select",
        "channels",
        "phases",
        "units",
        "update",
        "dynamic_sampling",
        "sampling",
        "selection",
    ),
)
#: Sections of a run that a recipe may give values for; they stand below the run's own.
RUN_SECTIONS = ("sampling", "selection")
DEFAULT_CHANNEL = "default"


@dataclass(frozen=True)
class ChannelSpec:
    """Stages of one channel of decisions (tokens, schedule, steps)."""

    gate: Spec
    reduce: Spec
    weight: tuple[Spec, ...] = ()
    bounds: Spec | None = None
    penalties: tuple[Spec, ...] = ()
    optimiser: Spec = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """One method. `group`: relative (advantages compare rows of a group) or none. `experience`: fresh or records.
    `sampling`, `selection`: what stands below the run's own sections of these names; family and selector check it."""

    slug: str
    title: str
    advantage: Spec
    channels: dict[str, ChannelSpec]
    group: str = "relative"
    experience: str = "fresh"
    paper: Spec = field(default_factory=dict)
    source: str = ""
    reconstruction: str | None = None
    notes: str | None = None
    shape: tuple[Spec, ...] = ()
    select: tuple[Spec, ...] = ()
    phases: tuple[tuple[str, int], ...] = ()
    units: dict[str, Spec] = field(default_factory=dict)
    epochs: int = 1
    minibatches: int = 1
    dynamic_sampling: bool = False
    sampling: Spec = field(default_factory=dict)
    selection: Spec = field(default_factory=dict)

    def channel(self, name: str) -> ChannelSpec:
        found = self.channels.get(name, self.channels.get(DEFAULT_CHANNEL))
        if found is None:
            raise UserError(f"recipe {self.slug}: no stages for channel {name!r}{nearest(name, self.channels)}")
        return found

    def phase(self, step: int, main: str) -> str:
        """The channel trained at this step: phases repeat, `[[tokens, 1], [schedule, 1]]` alternates."""
        if not self.phases:
            return main
        position = step % sum(n for _, n in self.phases)
        for name, n in self.phases:
            if position < n:
                return name
            position -= n
        raise AssertionError("phases cover every step")

    def turn(self, step: int, main: str) -> int:
        """How many steps before this one trained the same channel."""
        order = [name for name, n in self.phases for _ in range(n)] or [main]
        channel = self.phase(step, main)
        whole, rest = divmod(step, len(order))
        return whole * order.count(channel) + order[:rest].count(channel)


def _specs(value: Any, where: str) -> tuple[Spec, ...]:
    items = [] if value is None else value if isinstance(value, list) else [value]
    return tuple(_spec(item, where) for item in items)


def _spec(value: Any, where: str) -> Spec:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return dict(value)
    raise UserError(f"{where}: expected a stage name or a mapping with `name`, got {value!r}")


def _channel(data: Mapping[str, Any], where: str, known: tuple[str, ...] = CHANNEL_KEYS) -> ChannelSpec:
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: expected a mapping with `gate` and `reduce`, got {data!r}")
    for key in data:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, known)}")
    for key in ("gate", "reduce"):
        if key not in data:
            raise UserError(f"{where}: needs `{key}`")
    return ChannelSpec(
        gate=_spec(data["gate"], f"{where}.gate"),
        reduce=_spec(data["reduce"], f"{where}.reduce"),
        weight=_specs(data.get("weight"), f"{where}.weight"),
        bounds=_spec(data["bounds"], f"{where}.bounds") if data.get("bounds") else None,
        penalties=_specs(data.get("penalties"), f"{where}.penalties"),
        optimiser=dict(data.get("optimiser") or {}),
    )


def _phases(value: Any, channels: Mapping[str, Any], where: str) -> tuple[tuple[str, int], ...]:
    out = []
    for item in value or ():
        if not isinstance(item, (list, tuple)) or len(item) != 2 or not isinstance(item[1], int) or item[1] < 1:
            raise UserError(f"{where}: expected [channel, steps] pairs with at least 1 step, got {item!r}")
        if item[0] not in channels and DEFAULT_CHANNEL not in channels:
            raise UserError(f"{where}: no stages for channel {item[0]!r}{nearest(str(item[0]), channels)}")
        out.append((str(item[0]), item[1]))
    return tuple(out)


def parse(
    slug: str, data: Mapping[str, Any], *, unit: str | None = None, options: Mapping[str, Any] | None = None
) -> Recipe:
    """Mapping -> Recipe. `unit` merges the recipe's own defaults for that unit; `options` are dotted overrides."""
    where = f"recipe {slug}"
    tree: dict[str, Any] = copy.deepcopy(dict(data))
    for key in tree:
        if key not in (*TOP_KEYS, *CHANNEL_KEYS):
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, (*TOP_KEYS, *CHANNEL_KEYS))}")
    units = tree.get("units") or {}
    if unit is not None and unit in units:
        for dotted, value in units[unit].items():
            override(tree, dotted, value, where=f"{where}.units.{unit}")
    for dotted, value in (options or {}).items():
        if dotted.partition(".")[0] in RUN_SECTIONS:
            raise UserError(f"{where}: option {dotted!r} names no stage; set {dotted} in the run itself")
        override(tree, dotted, value, where=where)
    if "advantage" not in tree:
        raise UserError(f"{where}: needs `advantage`")
    if "channels" in tree:
        for key in CHANNEL_KEYS:
            if key in tree:
                raise UserError(f"{where}: `{key}` beside `channels` would be ignored; put it under channels.<name>")
        channels = {n: _channel(c, f"{where}.channels.{n}") for n, c in tree["channels"].items()}
    else:
        channels = {DEFAULT_CHANNEL: _channel(tree, where, (*TOP_KEYS, *CHANNEL_KEYS))}
    update = dict(tree.get("update") or {})
    for key in update:
        if key not in ("epochs", "minibatches"):
            raise UserError(f"{where}.update: unknown key {key!r}{nearest(key, ('epochs', 'minibatches'))}")
        if isinstance(update[key], bool) or not isinstance(update[key], int) or update[key] < 1:
            raise UserError(f"{where}.update.{key}: must be a whole number of at least 1, got {update[key]!r}")
    for key in RUN_SECTIONS:
        if not isinstance(tree.get(key) or {}, Mapping):
            raise UserError(f"{where}.{key}: expected a mapping of {key} settings, got {tree[key]!r}")
    for key in tree.get("selection") or {}:
        if key not in ("name", "options"):
            raise UserError(f"{where}.selection: unknown key {key!r}{nearest(key, ('name', 'options'))}")
    for key, valid in (("group", ("relative", "none")), ("experience", ("fresh", "records"))):
        if tree.get(key, valid[0]) not in valid:
            raise UserError(f"{where}.{key}: {tree[key]!r} is not one of {', '.join(valid)}")
    return Recipe(
        slug=slug,
        title=tree.get("title", slug),
        advantage=_spec(tree["advantage"], f"{where}.advantage"),
        channels=channels,
        group=tree.get("group", "relative"),
        experience=tree.get("experience", "fresh"),
        paper=dict(tree.get("paper") or {}),
        source=tree.get("source", ""),
        reconstruction=tree.get("reconstruction"),
        notes=tree.get("notes"),
        shape=_specs(tree.get("shape"), f"{where}.shape"),
        select=_specs(tree.get("select"), f"{where}.select"),
        phases=_phases(tree.get("phases"), channels, f"{where}.phases"),
        units=units,
        epochs=int(update.get("epochs", 1)),
        minibatches=int(update.get("minibatches", 1)),
        dynamic_sampling=bool(tree.get("dynamic_sampling", False)),
        sampling=dict(tree.get("sampling") or {}),
        selection=dict(tree.get("selection") or {}),
    )


def _step_into(node: Any, part: str, dotted: str, where: str) -> Any:
    if isinstance(node, list):  # stages in a list are addressed by their name
        names = [item if isinstance(item, str) else item.get("name") for item in node]
        if part not in names:
            raise UserError(
                f"{where}: option {dotted!r}: nothing named {part!r}{nearest(part, [str(n) for n in names])}"
            )
        at = names.index(part)
        if isinstance(node[at], str):
            node[at] = {"name": node[at]}
        return node[at]
    if not isinstance(node, dict) or part not in node:
        raise UserError(
            f"{where}: option {dotted!r}: nothing named {part!r}{nearest(part, node if isinstance(node, dict) else ())}"
        )
    if isinstance(node[part], str):
        node[part] = {"name": node[part]}
    return node[part]


def override(tree: dict[str, Any], dotted: str, value: Any, *, where: str) -> None:
    """Set `penalties.kl.coef` or `gate.dual_clip` in place. A last part may be new: the stage itself checks it."""
    *path, last = dotted.split(".")
    node: Any = tree
    for part in path:
        node = _step_into(node, part, dotted, where)
    if not isinstance(node, dict):
        raise UserError(f"{where}: option {dotted!r} does not name a setting")
    if not path and last not in (*TOP_KEYS, *CHANNEL_KEYS):
        raise UserError(f"{where}: unknown option {dotted!r}{nearest(last, (*TOP_KEYS, *CHANNEL_KEYS))}")
    node[last] = value
