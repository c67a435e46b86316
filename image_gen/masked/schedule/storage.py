"""A schedule policy on disk: `schedule.safetensors` and `schedule.json` in a folder of their own."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from image_gen.masked import config
from image_gen.masked.schedule.base import Schedule
from image_gen.masked.schedule.net import NetSchedule, Widths
from image_gen.masked.schedule.table import TableSchedule
from mmrl import json_io
from mmrl.errors import UserError
from mmrl.training.disk import replace, writing

WEIGHTS, NOTE = "schedule.safetensors", "schedule.json"
_REMEDY = "take a whole copy of the checkpoint"
#: A damaged size must not ask for more memory than there is.
_MOST_STEPS, _MOST_WIDTH = 1000, 65_536


def make(options: config.Schedule, *, steps: int, feature_width: int, grid: tuple[int, int]) -> Schedule:
    """A new schedule at the hand-made one. feature_width and grid matter to a net only. Its hidden layers are drawn
    from torch's global generator."""
    if options.kind == "net":
        return NetSchedule(options, steps=steps, feature_width=feature_width, grid=grid)
    return TableSchedule(options, steps=steps)


def save(schedule: Schedule, folder: Path) -> None:
    """Weights, the count of updates, and all settings needed to build it again. Raises WriteError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in schedule.state_dict().items()}
        save_file(state, str(folder / WEIGHTS))
    note = {"steps": schedule.steps, **schedule.options.model_dump(mode="json"), **schedule.shape_note()}
    replace(folder / NOTE, json.dumps(note, indent=2) + "\n")


def load(folder: Path, *, feature_width: int | None = None, grid: tuple[int, int] | None = None) -> Schedule:
    """What `save` wrote, on the CPU.

    feature_width   of the model that it is to be used with; a net trained on another one is refused.
    grid            of the canvases from now on (default: those it was trained on); its weights do not depend on it.
    Raises UserError for files that are missing, damaged, or do not fit each other.
    """
    path = folder / NOTE
    note = json_io.read_object(path, remedy=_REMEDY)
    steps, shape = note.pop("steps", None), {k: note.pop(k, None) for k in ("feature_width", "grid", "widths")}
    if missing := sorted(set(config.Schedule.model_fields) - set(note)):  # a default is not what was trained
        raise UserError(f"{path}: {missing[0]} is missing; {_REMEDY}")
    try:
        options = config.Schedule.model_validate(note)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise UserError(f"{path}: {where}: {first['msg']}; {_REMEDY}") from None
    if not _size(steps, _MOST_STEPS):
        raise UserError(f"{path}: steps is {steps!r}, not a whole number from 1 to {_MOST_STEPS}; {_REMEDY}")
    schedule: Schedule
    if options.kind == "net":
        schedule = _empty_net(options, steps, shape, path, feature_width, grid)
    else:
        schedule = TableSchedule(options, steps=steps)
    _fill(schedule, folder / WEIGHTS)
    return schedule


def _empty_net(
    options: config.Schedule,
    steps: int,
    shape: dict[str, Any],
    path: Path,
    feature_width: int | None,
    grid: tuple[int, int] | None,
) -> NetSchedule:
    width, stored, widths = shape["feature_width"], shape["grid"], shape["widths"]
    if not (
        _size(width)
        and isinstance(stored, list)
        and len(stored) == 2
        and all(map(_size, stored))
        and isinstance(widths, dict)
        and set(widths) == {f.name for f in fields(Widths)}
        and all(map(_size, widths.values()))
    ):
        raise UserError(f"{path}: feature_width, grid or widths of the net are missing or no sizes; {_REMEDY}")
    if feature_width is not None and feature_width != width:
        raise UserError(
            f"{path}: this schedule reads features of width {width}, the model has {feature_width}; use it with the "
            "model it was trained with"
        )
    where = grid or (stored[0], stored[1])
    return NetSchedule(options, steps=steps, feature_width=width, grid=where, widths=Widths(**widths))


def _size(value: object, most: int = _MOST_WIDTH) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _fill(schedule: Schedule, path: Path) -> None:
    """Read the weights, each of the right name and shape, and finite."""
    try:
        state: dict[str, Tensor] = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {_REMEDY}") from error
    mine = schedule.state_dict()
    if odd := sorted(set(mine) ^ set(state)):
        raise UserError(f"{path}: does not fit its {NOTE}: tensor {odd[0]} is missing or too many; {_REMEDY}")
    for name, value in state.items():
        if value.shape != mine[name].shape or value.is_floating_point() != mine[name].is_floating_point():
            raise UserError(
                f"{path}: does not fit its {NOTE}: {name} is {value.dtype} {tuple(value.shape)}, expected "
                f"{mine[name].dtype} {tuple(mine[name].shape)}; {_REMEDY}"
            )
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{path}: {name} holds numbers that are not finite; take an earlier checkpoint")
    schedule.load_state_dict(state)
