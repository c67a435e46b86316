"""What an objective refuses before any weight is loaded: unfit units, options that would be ignored or fail."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch

from mmrl.core.channels import CHANNELS, COMMON, split_pass
from mmrl.core.probe import probe
from mmrl.core.registry import Bound, level_segment
from mmrl.core.table import Table
from mmrl.errors import UserError, nearest

#: A clip width above this on a mean over elements never clips: log-probs there are means, ratios stay within 1e-3 of 1.
WIDEST_ELEMENT_CLIP = 0.02
WIDTHS = ("eps_low_nt", "eps_high_nt")


def number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where} must be a finite number, got {value!r}")
    return float(value)


def check_unit(bound: Bound, unit: str, where: str) -> None:
    stage = bound.stage
    if unit not in stage.units:
        reason = f": {stage.unit_reason}" if stage.unit_reason else ""
        raise UserError(
            f"{where}: {stage.kind} {stage.name!r} does not fit log-probabilities per {unit}{reason}; "
            f"it accepts {', '.join(stage.units)}"
        )
    level = bound.options.get("level", stage.options.get("level"))
    if unit == "row" and level not in (None, "row", "row-sum"):
        raise UserError(
            f"{where}: {stage.kind} {stage.name!r} with level {level} does not fit log-probabilities per row: only the "
            "row's sum has a meaning, its parts have no likelihood of their own; set level: row (per decision) or "
            "row-sum (of the whole)"
        )


def check_options(bound: Bound, widths: dict[str, Any], where: str) -> None:
    """Option values, by a dry call on two rows."""
    complaint = probe(bound, widths if bound.stage.kind == "gate" else {})
    if complaint is not None:
        options = ", ".join(f"{k}={v!r}" for k, v in bound.options.items()) or "its defaults"
        raise UserError(f"{where}: {bound.stage.kind} {bound.stage.name!r} refuses {options}: {complaint}")


def clip_widths(bounds: Bound | None, gate: Bound, unit: str, where: str) -> dict[str, Any]:
    """The widths that the gate will use, as far as they are known without data. Raises where one would be ignored."""
    taken = {n: p.default for n, p in inspect.signature(gate.stage.fn).parameters.items() if n in WIDTHS}
    if bounds is not None and not taken:
        raise UserError(f"{where}: gate {gate.stage.name!r} has no clip, so `bounds` would be ignored; remove it")
    given: dict[str, Any] = {}
    if bounds is not None and not bounds.stage.required:
        check_options(bounds, {}, where)
        given = bounds(Table({}))
    for name, value in given.items():
        if value is None and taken.get(name) is not None:
            option = "low" if name == "eps_low_nt" else "high"
            raise UserError(f"{where}: gate {gate.stage.name!r} always has this bound; give bounds.{option} a number")
    known = {**(taken if bounds is None or given else {}), **given}
    numbers = [float(v) for v in known.values() if isinstance(v, (int, float))]
    if unit == "element-mean" and max(numbers, default=0.0) > WIDEST_ELEMENT_CLIP:
        raise UserError(
            f"{where}: a clip of {max(numbers):g} never acts on log-probs that are means over elements; "
            "use about 1e-4 (recipe option bounds.high)"
        )
    return {k: v for k, v in given.items() if v is not None and not isinstance(v, torch.Tensor)}


def check_reachable(
    bound: Bound, provides: frozenset[str], offered: frozenset[str], *, fresh: bool, dense: bool, where: str
) -> None:
    """Every channel a stage needs must come from somewhere. `offered`: what policy and reducers can evaluate. `dense`:
    the policy has outputs of single decisions, so there can be rewards of single decisions."""
    stage = bound.stage
    for name in sorted(bound.needs(provides)):
        prefix, base = split_pass(name)
        by_policy = prefix in ("old", "ref") or base not in COMMON
        if prefix == "sampler" and not (fresh and base == "logp_nt"):
            raise UserError(f"{where}: {stage.kind} {stage.name!r} needs {name}, but nothing here is sampled")
        if base == "reward_ntk" and not dense:
            raise UserError(
                f"{where}: {stage.kind} {stage.name!r} needs a reward per decision; rewards are per rollout"
            )
        made = base in ("adv_nt", "loss_nt") or not (by_policy and CHANNELS[base].provider == "policy")
        if prefix != "sampler" and not made and base not in offered:
            raise UserError(f"{where}: needs {name}, which this policy does not provide ({stage.kind} {stage.name!r})")


def check_names(bound: Bound, keys: frozenset[str] | None, segments: frozenset[str] | None, where: str) -> None:
    """Keys and segments that options name must exist. None: not known, not checked."""
    options = {**bound.stage.options, **bound.options}
    key = options.get("key")
    if keys is not None and isinstance(key, str) and key not in keys:
        raise UserError(f"{where}: {bound.stage.name!r}: key: no key {key!r} in the rollouts{nearest(key, keys)}")
    if segments is None:
        return
    for name in sorted(bound.segments - segments):
        option = "level" if level_segment(options.get("level")) == name else "segment"
        raise UserError(
            f"{where}: {bound.stage.name!r}: {option}: rollouts have no segment {name!r}{nearest(name, segments)}"
        )
