"""How much memory a run about videos needs on one rank, from shapes alone. Loads no weights.

The language model's parts are those of `mmrl.vlm.memory`; here are the frames: how many patches and tokens they are,
what the vision tower keeps of them, and what lies on the host. Two frames are one position in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.training.memory import GIB
from mmrl.vlm import memory
from mmrl.vlm.memory import KEPT_PER_LAYER, Shape

#: Frames that make one position in time.
TOGETHER = 2


@dataclass(frozen=True)
class Frames:
    """One video at its largest: frames, pixels of a frame, patches the vision tower sees, tokens the prompt holds."""

    count: int
    pixels: int
    patches: int
    tokens: int


@dataclass(frozen=True)
class Seen:
    """Bytes of the frames on one rank.

    together  videos (of one a prompt) that run at once.
    kept      what the vision tower keeps of them: for its backward pass where it trains, else inside one block.
    alive     the same without gradient: the rollout.
    clips     decoded frames that are kept on the host; prompts: pixel values there, of one step or two.
    """

    together: int
    kept: float
    alive: float
    clips: float
    prompts: float


def frames_of(inputs: Any, shape: Shape) -> Frames:
    """The largest video that the `inputs` section lets through. With `frames: times` a record says how many; max_frames
    stands for it."""
    count = inputs.count if inputs.frames == "count" else inputs.max_frames
    if inputs.even_frames:
        count = max(count - count % TOGETHER, TOGETHER)
    pixels = inputs.frame_max_pixels
    if inputs.video_max_pixels is not None:
        pixels = min(pixels, inputs.video_max_pixels // count)
    side = shape.vision_patch * shape.vision_merge  # of what becomes a token; sides of frames are multiples of it
    merged = max(pixels // side**2, 1)
    tokens = -(-count // TOGETHER) * merged
    return Frames(count, merged * side**2, tokens * shape.vision_merge**2, tokens)


def seen(config: Config, shape: Shape, frames: Frames, *, ranks: int = 1) -> Seen:
    """The parts of the frames. A vision tower that trains keeps each block's values, with gradient checkpointing each
    block's input and one block; a frozen one has one block at a time."""
    narrow = config.model.autocast != "off" and config.device != "cpu"
    width = 2 if narrow else 4
    prompts = -(-config.train.prompts // ranks)
    together = min(max(config.model.piece_tokens // frames.tokens, 1), prompts)
    values = 3 * TOGETHER * shape.vision_patch**2 * 4.0  # pixel values of a patch, float32
    mlp = (3 if shape.vision_gated else 2) * shape.vision_intermediate
    block = (KEPT_PER_LAYER * shape.vision_hidden + mlp) * width
    patches = together * frames.patches
    held: float = block
    if vision_trains(config):
        if config.model.gradient_checkpointing:
            held = block + shape.vision_depth * shape.vision_hidden * width
        else:
            held = shape.vision_depth * block
    return Seen(
        together=together,
        kept=patches * (held + values),
        alive=patches * (block + values),
        clips=3.0 * config.inputs.cached_clips * frames.count * frames.pixels,
        prompts=prompts * frames.patches * values * (2 if config.inputs.read_ahead else 1),
    )


def vision_trains(config: Config) -> bool:
    adapter = config.model.adapter
    return adapter.targets == "all" if adapter.kind == "lora" else "vision" not in config.model.freeze


def describe(config: Config, recipe: Recipe, *, ranks: int = 1) -> list[str]:
    """The estimate as text, for one video a prompt; `size unknown` where the shapes are not known."""
    shape = memory.shape_of(config.model.path, config.model.base)
    if shape is None:
        return [memory.unknown(config)]
    frames = frames_of(config.inputs, shape)
    e = memory.estimate(config, recipe, shape, ranks=ranks, prompt=frames.tokens)
    s = seen(config, shape, frames, ranks=ranks)
    trains = "with gradient" if vision_trains(config) else "frozen"
    part = (f"vision tower, {trains}, frames of {s.together} video(s) at once", s.kept)
    found = memory.lines(config, e, shape, further=[part], update=s.kept, rollout=s.alive)
    limit = config.inputs.max_prompt_tokens
    told = (
        f"a video: at most {frames.count} frames of {frames.pixels} pixels = {frames.patches} patches = "
        f"{frames.tokens} tokens of the {limit} of inputs.max_prompt_tokens"
    )
    if frames.tokens >= limit:
        fewer = "count" if config.inputs.frames == "count" else "max_frames"
        told += f"; these alone are too many: lower inputs.{fewer} or frame_max_pixels, or raise the limit"
    host = (
        f"on the host: {s.clips / GIB:.3f} GiB of decoded frames at most (inputs.cached_clips "
        f"{config.inputs.cached_clips}), {s.prompts / GIB:.3f} GiB of pixel values of prompts"
    )
    return [found[0], told, *found[1:], host]
