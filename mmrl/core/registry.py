"""Stage registries: plain functions by kind and name; what they need is read from their signatures.

A parameter whose name is a channel (or `keys`, `segments`) is a need: required without a default, optional with the
default None. Every other keyword-only parameter is an option that a recipe may set. Unknown options are rejected.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmrl.core.channels import is_channel
from mmrl.core.table import Table
from mmrl.errors import UserError, nearest

KINDS = ("shape", "advantage", "select", "weight", "bounds", "gate", "penalty", "reduce")
UNITS = ("decision", "row", "element-mean")
SCOPES = ("decision", "segment", "row", "group", "batch")
_CONTAINERS = ("keys", "segments")


@dataclass(frozen=True)
class Stage:
    """One registered function.

    required, optional   channel names read from the signature.
    when                 channel -> option: that optional channel is required while the option is truthy, or, written
                         `option=value`, while it has that value.
    instead              required channel -> channel of the family that replaces it.
    scope                what must be present at once for the function to be exact.
    units                what one log-probability in the table may stand for.
    signal_without_variance   advantages may be non-zero although all rewards of a group are equal.
    relative             needs at least two rows in a group.
    """

    kind: str
    name: str
    fn: Callable[..., Any]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    options: Mapping[str, Any]
    when: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)
    scope: str = "decision"
    units: tuple[str, ...] = UNITS
    unit_reason: str = ""
    signal_without_variance: bool = False
    relative: bool = False


_STAGES: dict[tuple[str, str], Stage] = {}


def level_segment(level: Any) -> str:
    """`segment:step`, `segment-sum:step` -> `step`; "" for any other ratio level."""
    kind, _, name = level.partition(":") if isinstance(level, str) else ("", "", "")
    return name if kind in ("segment", "segment-sum") else ""


def _signature(fn: Callable[..., Any], where: str) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]:
    required: list[str] = []
    optional: list[str] = []
    options: dict[str, Any] = {}
    for p in inspect.signature(fn).parameters.values():
        if p.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(f"{where}: parameter {p.name!r} must be keyword-only")
        if is_channel(p.name) or p.name in _CONTAINERS:
            (required if p.default is inspect.Parameter.empty else optional).append(p.name)
        elif p.default is inspect.Parameter.empty:
            raise TypeError(f"{where}: option {p.name!r} needs a default (or is not in the channel table)")
        else:
            options[p.name] = p.default
    return tuple(required), tuple(optional), options


def stage(kind: str, name: str, **traits: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator. The function itself stays a plain function."""
    if kind not in KINDS:
        raise TypeError(f"unknown kind {kind!r}; kinds: {', '.join(KINDS)}")

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        where = f"{kind} {name!r}"
        if (kind, name) in _STAGES and _STAGES[kind, name].fn.__module__ != fn.__module__:
            raise TypeError(f"{where} is registered already by {_STAGES[kind, name].fn.__module__}")
        required, optional, options = _signature(fn, where)
        if traits.get("scope") == "segment" and not {"level", "segment"} & options.keys():
            raise TypeError(f"{where}: scope segment needs an option that names it, `level` or `segment`")
        _STAGES[kind, name] = Stage(kind, name, fn, required, optional, options, **traits)
        return fn

    return register


def stages(kind: str) -> dict[str, Stage]:
    """All registered stages of a kind by name."""
    return {n: s for (k, n), s in sorted(_STAGES.items()) if k == kind}


def find(kind: str, name: str) -> Stage:
    known = stages(kind)
    if name not in known:
        raise UserError(f"recipe: unknown {kind} {name!r}{nearest(name, known)}")
    return known[name]


@dataclass(frozen=True)
class Bound:
    """A stage with its options set: callable on a table."""

    stage: Stage
    options: dict[str, Any]

    def needs(self, provides: frozenset[str] = frozenset()) -> frozenset[str]:
        """Channels that must be in the table; `provides` are closed forms that a family offers instead."""
        out = {r for r in self.stage.required if r not in _CONTAINERS}
        out |= {c for c, option in self.stage.when.items() if self._asks(option)}
        for name, other in self.stage.instead.items():
            if name in out and other in provides:
                out = (out - {name}) | {other}
        return frozenset(out)

    @property
    def scope(self) -> str:
        """The stage's scope, widened when the option `level` judges a decision by its segment or its row."""
        level = self._option("level") or "decision"
        least = "decision" if level == "decision" else "segment" if level_segment(level) else "row"
        return max(self.stage.scope, least, key=SCOPES.index)

    @property
    def segments(self) -> frozenset[str]:
        """The segments that its options name: those it judges by (`level`), those it averages over (`segment`)."""
        named = (level_segment(self._option("level")), self._option("segment"))
        return frozenset(name for name in named if isinstance(name, str) and name)

    def _asks(self, condition: str) -> bool:
        name, is_value, value = condition.partition("=")
        return self._option(name) == value if is_value else bool(self._option(name))

    def _option(self, name: str) -> Any:
        return self.options.get(name, self.stage.options.get(name))

    def ready(self, table: Table, provides: frozenset[str] = frozenset()) -> bool:
        return all(n in table for n in self.needs(provides))

    def __call__(self, table: Table) -> Any:
        values: dict[str, Any] = dict(self.options)
        for name in (*self.stage.required, *self.stage.optional):
            if name in _CONTAINERS:
                values[name] = getattr(table, name)
            elif name in table:
                values[name] = table[name]
            elif self.stage.instead.get(name) in table.channels:
                values[name] = None  # the closed form stands in
            elif name in self.stage.required:
                raise KeyError(f"{self.stage.kind} {self.stage.name!r} needs {name}, which is not in the table")
        return self.stage.fn(**values)


def bind(kind: str, spec: Mapping[str, Any] | str, *, ignore: tuple[str, ...] = ()) -> Bound:
    """`{name: ..., option: value}` -> Bound. Unknown names and options raise UserError with the nearest valid one."""
    data = {"name": spec} if isinstance(spec, str) else dict(spec)
    found = find(kind, str(data.pop("name", "")))
    options = {k: v for k, v in data.items() if k not in ignore}
    for option in options:
        if option not in found.options:
            raise UserError(
                f"recipe: {kind} {found.name!r} has no option {option!r}{nearest(option, (*found.options, *ignore))}"
            )
    return Bound(found, options)
