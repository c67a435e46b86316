"""The record: one training example, whatever the family. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Coordinate frames a box may be written in (x1, y1, x2, y2).
FRAMES = ("norm1000", "norm1", "pixel_original", "pixel_model_input")


@dataclass(frozen=True)
class Record:
    """One line of a JSONL file.

    id        unique in its file; names the random stream of its samples.
    task      chooses the reward ("detection", "classification", "grounding", "counting", "image", or a user's own).
    prompt    a string, or chat messages `[{"role": ..., "content": str | [{"type": "image"}, ...]}]`.
    images    file paths (absolute once read; relative to the JSONL file in it) or PIL images made in memory.
    videos    likewise.
    answer    what the reward compares with; None only where the reward needs none.
    response  a demonstration to imitate (recipe `sft`); None where there is none.
    frame     coordinate frame of boxes in `answer`; the prompt asks for, and the reward parses, this same frame.
    meta      anything else; rewards may read it (e.g. {"category": "7", "source": "digits"}). Prompts
              for pictures have what their file says of them here (GenEval: tag, include, exclude).
    """

    id: str
    task: str
    prompt: Any
    images: tuple[Any, ...] = ()
    videos: tuple[Any, ...] = ()
    answer: Any = None
    response: str | None = None
    frame: str = "norm1000"
    meta: dict[str, Any] = field(default_factory=dict)
