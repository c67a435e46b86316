"""What is wrong with a configuration or a record before weights load."""

from __future__ import annotations

from functools import cache

from mmrl.config import Config, RewardSpec, typed
from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError
from mmrl.rewards.plan import record_check
from mmrl.rewards.registry import known_tasks
from mmrl.vlm.memory import shape_of
from video.clips import Clip
from video.config import Inputs
from video.frames import specs_of
from video.reading import fitted, look, read
from video.rewards import catalogue  # noqa: F401  (registers the rewards that `auto` stands for)
from video.rewards.choice import check_letters

#: Sides of what becomes a token in a model of unknown shape: patches of 14 pixels, merged 2 x 2.
_FACTOR = 28
_BY_DEFAULT = record_check([RewardSpec(name="auto")])


def inputs_of(config: Config) -> Inputs:
    return typed(config.inputs, Inputs)


def check(config: Config) -> None:
    """What no single key shows. Raises UserError."""
    inputs = inputs_of(config)
    if inputs.even_frames and inputs.frames == "count" and inputs.count % 2:
        raise UserError(
            f"inputs.count: {inputs.count} is odd, and inputs.even_frames asks for pairs; "
            "make it even, or set even_frames to false"
        )
    if inputs.even_frames and inputs.frames == "fps" and inputs.max_frames < 2:
        raise UserError("inputs.max_frames: 1 frame is no pair; raise it, or set inputs.even_frames to false")
    least, factor = inputs.count if inputs.frames == "count" else inputs.min_frames, _factor_of(config)
    if inputs.video_max_pixels is not None and inputs.video_max_pixels < least * factor**2:
        raise UserError(
            f"inputs.video_max_pixels: {inputs.video_max_pixels} leaves no {factor} x {factor} pixels to each of "
            f"{least} frames; raise it, or take fewer frames"
        )


def _factor_of(config: Config | None) -> int:
    """Sides of frames are multiples of it; known before weights load where the model's shape is."""
    shape = None if config is None else _shape_of(config.model.path, config.model.base)
    return _FACTOR if shape is None else shape.vision_patch * shape.vision_merge


_shape_of = cache(shape_of)  # asked for each record


def check_answer(record: Record, config: Config | None, *, whole: bool) -> None:
    """The answer, where no reward of the run does it: without a configuration what the default rewards need, and the
    letters of held-out questions (`whole`), which are measured whatever the rewards. Raises UserError."""
    if record.answer is None:
        return
    if config is None and record.task in known_tasks():  # a task of one's own has rewards of one's own
        _BY_DEFAULT(record)
    if whole and record.task == "choice":
        check_letters(record)


def check_record(record: Record, config: Config | None, *, whole: bool) -> None:
    """Opens the record's videos: their headers, or with `whole` the frames that will be asked for; without a
    configuration by the default inputs.

    Raises RecordError for one that is missing, broken, without pictures, too long or too large.
    """
    if not record.videos:
        return
    inputs = Inputs() if config is None else inputs_of(config)
    specs = specs_of(record, inputs, factor=_factor_of(config))
    try:
        for source, spec in zip(record.videos, specs, strict=True):
            if isinstance(source, Clip):
                fitted(source, spec)
            elif whole:
                read(source, spec)
            else:
                look(source, spec)
    except UserError as error:
        raise RecordError(record.id, str(error)) from error
