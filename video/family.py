"""Entry points of the family: load a policy from a configuration, evaluate it, look at its records, export it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from mmrl.config import Config
from mmrl.data.records import Record
from mmrl.training.exported import Exported, Wanted
from mmrl.vlm.config import Model, Sampling
from mmrl.vlm.family import from_config, load_as
from video.check import check as check
from video.check import check_answer, check_record, inputs_of
from video.clips import Clip
from video.config import Inputs
from video.frames import Spec
from video.generate import generate as generate
from video.policy import VideoPolicy
from video.reading import read

#: Its class attributes (unit, channels, provides) are read before any weights load.
POLICY: type[VideoPolicy] = VideoPolicy


def load_policy(config: Config) -> VideoPolicy:
    """Model, processor and adapter of `config.model`, on the configured device, ready to train."""
    return from_config(config, VideoPolicy, Inputs)


def load(options: Model, sampling: Sampling, inputs: Inputs, *, device: str = "auto") -> VideoPolicy:
    """The same from the three sections of this family."""
    return load_as(VideoPolicy, options, sampling, inputs, device=device)


def look(record: Record, config: Config | None, *, whole: bool) -> None:
    """Looks at the record's answer and videos when it is read; without a configuration by the defaults. Raises
    UserError."""
    check_answer(record, config, whole=whole)
    check_record(record, config, whole=whole)


def evaluate(policy: VideoPolicy, records: list[Record], config: Config) -> dict[str, float]:
    """Greedy metrics of held-out records."""
    from video.evaluate import evaluate as run

    return run(policy, records, config)


def first_look(policy: VideoPolicy, records: list[Record], config: Config) -> tuple[dict[str, float], list[str]]:
    """The same, with a line for boxes that seem to be in another frame than the data say."""
    from video.evaluate import first_look as run

    return run(policy, records, config)


def builtin(name: str) -> list[Record]:
    """Embedded data, e.g. clips:train."""
    from video.embedded.records import builtin as make

    return make(name)


def chance(records: list[Record], config: Config) -> dict[str, float]:
    """The best constant answer's level of each metric."""
    from video.evaluate import chance as level

    return level(records, config)


def export(config: Config, out: Path, wanted: Wanted, record: Record) -> Exported:
    """A folder that plain transformers or peft load, compared with the model as the run evaluates it on a prompt in
    which the first frame of each clip stands as a picture: that shows every weight, and any program can repeat it.
    The card's code asks about a video file."""
    from mmrl.vlm.export import export as run
    from video.usage import note, usage

    done = run(config, out, wanted, still(record))
    options, inputs = Model.model_validate(config.model.model_dump()), inputs_of(config)
    return replace(
        done,
        pipeline="video-text-to-text",
        usage=usage(options, inputs, record, adapter_only=wanted.adapter_only),
        notes=(*done.notes, note(inputs)),
    )


def still(record: Record) -> Record:
    """The record with a picture, the first frame, in the place of each clip."""
    frames = [
        Image.fromarray((v if isinstance(v, Clip) else read(v, Spec("count", count=1, even=False))).frames_nhwc[0])
        for v in record.videos
    ]
    if isinstance(record.prompt, str):
        return replace(record, images=(*frames, *record.images), videos=())
    prompt: list[dict[str, Any]] = copy.deepcopy(list(record.prompt))
    videos, images, order = iter(frames), iter(record.images), []
    for part in (p for m in prompt if not isinstance(m["content"], str) for p in m["content"]):
        if part["type"] in ("video", "image"):
            order.append(next(videos) if part["type"] == "video" else next(images))
            part["type"] = "image"
    unplaced = [*videos, *images]  # pictures and clips that no message places come before all others
    return replace(record, prompt=prompt, images=(*order, *unplaced), videos=())
