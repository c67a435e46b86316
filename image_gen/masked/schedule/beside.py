"""The schedule that belongs to a model's weights: stored beside them, or new at the hand-made one."""

from __future__ import annotations

from pathlib import Path

from image_gen.masked.config import Model
from image_gen.masked.models.base import TokenModel
from image_gen.masked.schedule import storage
from image_gen.masked.schedule.base import Schedule
from mmrl.errors import UserError

#: Of the schedule, beside stored weights.
FOLDER = "schedule"


def schedule_of(options: Model, model: TokenModel, *, steps: int, size: tuple[int, int]) -> Schedule:
    """`options.path` may hold a schedule. One that was trained is taken as it is; its settings are written into the
    options, so that a run's own config.yaml tells what was trained. One that never was (a warm start writes the
    hand-made one) gives way to other settings. `size`: height and width of the pictures. On the CPU.

    Raises UserError for settings that were asked for and are not the stored ones, and for damaged files.
    """
    grid, folder = model.grid(*size), Path(options.path) / FOLDER

    def new() -> Schedule:
        return storage.make(options.schedule, steps=steps, feature_width=model.feature_width, grid=grid)

    if not folder.is_dir():
        return new()
    schedule = storage.load(folder, feature_width=model.feature_width, grid=grid)
    for name in sorted(options.schedule.model_fields_set):
        asked, kept = getattr(options.schedule, name), getattr(schedule.options, name)
        if asked != kept and not schedule.trained:
            return new()
        if asked != kept:
            raise UserError(
                f"model.schedule.{name}: {asked} is asked for, the schedule stored with {options.path!r} has {kept}; "
                "it is trained further as it is, so leave the setting out"
            )
    options.schedule = schedule.options.model_copy(deep=True)
    return schedule
