"""From the `rewards` section to the columns of the reward table. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrl.config import RewardSpec
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from mmrl.rewards.registry import Check, RewardDef, bind_options, find, known_tasks, registered, task_rewards


@dataclass(frozen=True)
class Component:
    """One reward of the run with its options. `columns` are its names in the table; `auto` = chosen by the task."""

    one: RewardDef
    options: Mapping[str, Any]
    weight: float
    columns: tuple[str, ...]
    auto: bool
    success: float | None = None
    unfinished: float | None = None

    def applies(self, task: str) -> bool:
        if self.auto:
            return self.one.name in task_rewards(task) and self.one.applies(task)
        return self.one.applies(task)


def make_plan(specs: Sequence[RewardSpec], tasks: Iterable[str] | None = None) -> list[Component]:
    """The components in order. `auto` stands for the default sets of `tasks` (None: of every known task).

    Raises UserError for unknown names and options, a reward listed twice beside `auto`, and a task without reward.
    """
    if not specs:
        raise UserError("rewards.components is empty; leave it out for `auto`, or name a reward")
    names = [spec.name for spec in specs]
    if names.count("auto") > 1:
        raise UserError("rewards.components: `auto` is listed twice")
    wanted = sorted(set(tasks)) if tasks is not None else None
    plan: list[Component] = []
    for spec in specs:
        if spec.name == "auto":
            plan += _auto(spec, known_tasks() if wanted is None else wanted)
        else:
            plan.append(_component(spec, spec.name, spec.options, auto=False))
    plan = _unique(plan)
    for task in wanted or ():
        check_task(plan, task)
    return plan


def check_task(plan: Sequence[Component], task: str) -> None:
    """Raises UserError when no component applies to the task: its rows would train nothing."""
    if not any(c.applies(task) for c in plan):
        listed = ", ".join(c.one.name for c in plan)
        raise UserError(
            f"rewards: none of the rewards of this run ({listed}) applies to records of task {task!r}; "
            "add one under `rewards.components`, or use `auto`"
        )


def record_check(specs: Sequence[RewardSpec]) -> Callable[[Record], None]:
    """A function that raises UserError for a record that a reward of `specs` would score and cannot: what the rewards
    themselves `check`, and with `auto` a task that has no reward. Unknown names are left to `make_plan`."""
    by_task: dict[str, list[Check]] = {}

    def check(record: Record) -> None:
        if record.task not in by_task:
            by_task[record.task] = _checks(specs, record.task)
        for one in by_task[record.task]:
            one(record)

    return check


def _checks(specs: Sequence[RewardSpec], task: str) -> list[Check]:
    known = registered()
    automatic = task_rewards(task) if any(spec.name == "auto" for spec in specs) else ()
    names = dict.fromkeys(name for spec in specs for name in (automatic if spec.name == "auto" else (spec.name,)))
    used = [known[name] for name in names if name in known]
    return [one.check for one in used if one.check is not None and one.applies(task)]


def _auto(spec: RewardSpec, tasks: Sequence[str]) -> list[Component]:
    names = list(dict.fromkeys(name for task in tasks for name in task_rewards(task)))
    for key, value in spec.options.items():
        if key not in names:
            raise UserError(
                f"rewards: options of `auto` are given by reward name; unknown {key!r}{nearest(key, names)}"
            )
        if not isinstance(value, Mapping):
            raise UserError(f"rewards: options of `auto`: {key} must hold `option: value` lines, got {value!r}")
    return [_component(spec, name, spec.options.get(name, {}), auto=True) for name in names]


def _component(spec: RewardSpec, name: str, options: Mapping[str, Any], *, auto: bool) -> Component:
    one = find(name)
    columns = tuple(f"{name}/{part}" for part in one.components) or (name,)
    return Component(one, bind_options(one, options), spec.weight, columns, auto, spec.success, spec.unfinished)


def _unique(plan: list[Component]) -> list[Component]:
    """A reward listed again gets columns with _2, _3, ...; beside `auto` that is a mistake."""
    automatic = {c.one.name for c in plan if c.auto}
    seen: dict[str, int] = {}
    out = []
    for c in plan:
        if not c.auto and c.one.name in automatic:
            raise UserError(
                f"rewards: {c.one.name!r} is part of `auto` already; set its options there "
                f"(options: {{{c.one.name}: {{...}}}}), or list all rewards without `auto`"
            )
        seen[c.one.name] = count = seen.get(c.one.name, 0) + 1
        columns = tuple(f"{name}_{count}" for name in c.columns) if count > 1 else c.columns
        out.append(replace(c, columns=columns))
    return out
