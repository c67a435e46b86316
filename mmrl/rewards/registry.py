"""Rewards by name. A reward is a plain function

    f(outputs, records, info, *, option=default, ...) -> list[float | None] | dict[str, list[float | None]]

with one entry per row; None = does not apply to the row. Options are its keyword-only parameters; their annotations
are checked. Loads no torch.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from mmrl.data.records import Record
from mmrl.errors import UserError, nearest

Function = Callable[..., Any]
#: Raises UserError for a record whose answer a reward cannot compare with; what it returns is not looked at.
Check = Callable[[Record], object]
_BUILTIN = ("detection", "classification", "grounding", "counting", "format", "overlong", "detection_peers", "rec")


@dataclass(frozen=True)
class RewardDef:
    """One registered reward.

    tasks       tasks it applies to; empty = every task.
    components  names of its columns when it returns a dict; empty = one column named like the reward.
    rowwise     every row is scored on its own: batches may be cut for workers and to find a bad row.
    cacheable   the score depends on output and record only (not on info).
    check       called on every record of its tasks while the data are read, before any weights load.
    """

    name: str
    function: Function
    tasks: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    rowwise: bool = True
    cacheable: bool = True
    check: Check | None = None

    def applies(self, task: str) -> bool:
        return not self.tasks or task in self.tasks


_REWARDS: dict[str, RewardDef] = {}
_TASK_SETS: dict[str, tuple[str, ...]] = {
    "detection": ("iou", "confidence", "format"),
    "classification": ("label", "format"),
    "grounding": ("giou", "format"),
    "counting": ("count", "format"),
}


def reward(
    name: str,
    *,
    tasks: Iterable[str] = (),
    components: Iterable[str] = (),
    rowwise: bool = True,
    cacheable: bool = True,
    check: Check | None = None,
) -> Callable[[Function], Function]:
    """Decorator: register a reward under `name`. The function itself stays a plain function."""

    def register(function: Function) -> Function:
        known = _REWARDS.get(name)
        if known is not None and known.function.__module__ != function.__module__:
            raise UserError(
                f"reward {name!r} of {function.__module__} is registered already by {known.function.__module__}; "
                "choose another name"
            )
        if name == "auto" or "/" in name:
            raise UserError(f"reward {name!r}: the name 'auto' and the sign '/' are taken; choose another name")
        option_defaults(function, name)
        _REWARDS[name] = RewardDef(name, function, tuple(tasks), tuple(components), rowwise, cacheable, check)
        return function

    return register


def set_task_rewards(task: str, names: Iterable[str]) -> None:
    """The rewards that `auto` uses for a task; for a new task, or to replace the set of a known one."""
    chosen = tuple(names)
    if not chosen:
        raise UserError(f"task {task!r}: give at least one reward name")
    _TASK_SETS[task] = chosen


def registered() -> dict[str, RewardDef]:
    """All known rewards by name, the package's own included."""
    for module in _BUILTIN:
        importlib.import_module(f"mmrl.rewards.{module}")
    return dict(sorted(_REWARDS.items()))


def find(name: str) -> RewardDef:
    """Raises UserError with the nearest name."""
    known = registered()
    if name not in known:
        raise UserError(
            f"rewards: unknown reward {name!r}{nearest(name, [*known, 'auto'])} "
            "(a reward of your own: @reward in a module listed under `plugins:`)"
        )
    return known[name]


def task_rewards(task: str) -> tuple[str, ...]:
    """The default set of a task: the one that was set, else all rewards registered for that task by name."""
    if task in _TASK_SETS:
        return _TASK_SETS[task]
    named = tuple(name for name, one in registered().items() if task in one.tasks)
    if not named:
        raise UserError(
            f"rewards: no default rewards for task {task!r}{nearest(task, known_tasks())}; name rewards under "
            f"`rewards.components`, or register your own with @reward('name', tasks=({task!r},)) in a plug-in"
        )
    return named


def known_tasks() -> list[str]:
    """Tasks that have a default set."""
    return sorted({*_TASK_SETS, *(t for one in registered().values() for t in one.tasks)})


def option_defaults(function: Function, name: str) -> dict[str, Any]:
    """Option -> default (`inspect.Parameter.empty` when it must be given), read from the signature.

    Raises UserError when the function cannot be called as f(outputs, records, info, option=...).
    """
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional if p.default is p.empty]
    star = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) > 3 or (len(positional) < 3 and not star):
        got = ", ".join(p.name for p in parameters)
        raise UserError(
            f"reward {name!r}: the function must take (outputs, records, info, *, options...), got ({got}); "
            "make further parameters keyword-only, with defaults"
        )
    options = [*positional[3:], *(p for p in parameters if p.kind is p.KEYWORD_ONLY)]
    return {p.name: p.default for p in options}


def bind_options(one: RewardDef, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the function will get them, checked against its annotations.

    Raises UserError for an unknown option (with the nearest name), a missing one, or a value of the wrong kind.
    """
    defaults = option_defaults(one.function, one.name)
    free = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(one.function).parameters.values())
    for key in options:
        if key not in defaults and not free:
            raise UserError(f"rewards: {one.name!r} has no option {key!r}{nearest(key, defaults)}")
    missing = [k for k, v in defaults.items() if v is inspect.Parameter.empty and k not in options]
    if missing:
        raise UserError(f"rewards: {one.name!r} needs the option {missing[0]!r}")
    hints = typing.get_type_hints(one.function, include_extras=True)
    fields: dict[str, Any] = {
        k: (hints.get(k, Any), ... if v is inspect.Parameter.empty else v) for k, v in defaults.items()
    }
    model = create_model("Options", __config__=ConfigDict(extra="allow", arbitrary_types_allowed=True), **fields)
    try:
        checked = model(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise UserError(f"rewards: {one.name!r}: option {where}: {first['msg']}, got {first['input']!r}") from None
    return {key: getattr(checked, key) for key in options}
