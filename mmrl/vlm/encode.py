"""A record becomes a prompt: chat template, processor, ids, pictures, positions. Axes: P prompt positions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError
from mmrl.vlm.adapters import Shape
from mmrl.vlm.config import Inputs


@dataclass(eq=False)
class Prompt:
    """One encoded prompt, on the CPU. Rows that hold the same object share its forward pass.

    ids             int64 [P].
    positions       int64 [3, P], M-RoPE.
    next_position   position of the first completion token, equal on all axes.
    media           pixel_values [patches, ...], image_grid_thw [pictures, 3] and the like by name, one row of a grid
                    a picture or clip; empty for a prompt of text only.
    text            the prompt as the chat template wrote it, one placeholder a picture.
    sizes           (width, height) of each picture, as it was given and as the model sees it.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    next_position: int
    media: dict[str, torch.Tensor] = field(default_factory=dict)
    text: str = ""
    sizes: list[tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.ids.shape[0])


def messages_of(record: Record, *, system: str | None, edit: str | None) -> list[dict[str, Any]]:
    """Chat messages with one part a picture and a video; `edit` is appended to the last user text.

    Parts that no message places come first in the first user message, videos before pictures. A system message of the
    record wins over `system`. Raises UserError where files and parts disagree.
    """
    if isinstance(record.prompt, str):
        messages: list[dict[str, Any]] = [{"role": "user", "content": record.prompt}]
    else:
        messages = copy.deepcopy(list(record.prompt))
    for message in messages:
        if isinstance(message.get("content"), str):
            message["content"] = [{"type": "text", "text": message["content"]}]
    users = [m for m in messages if m.get("role") == "user"]
    if not users:
        raise RecordError(record.id, "prompt has no message of role 'user'; add one")
    for kind, files in (("image", record.images), ("video", record.videos)):
        placed = sum(part.get("type") == kind for m in messages for part in m["content"])
        if placed == 0:
            users[0]["content"][:0] = [{"type": kind} for _ in files]
        elif placed != len(files):
            what = "pictures, images lists" if kind == "image" else "videos, videos lists"
            raise RecordError(record.id, f"prompt places {placed} {what} {len(files)}; make them equal")
    if edit:
        last = users[-1]["content"]
        if last and last[-1].get("type") == "text":
            last[-1]["text"] += edit
        else:
            last.append({"type": "text", "text": edit})
    if system is not None and all(m.get("role") != "system" for m in messages):
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return messages


def plain_text(record: Record) -> str:
    """The words of the prompt as a person reads them."""
    if isinstance(record.prompt, str):
        return record.prompt
    texts = []
    for message in record.prompt:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [p.get("text", "") for p in content]
        texts.append(f"{message['role']}: " + "".join(parts))
    return "\n".join(texts)


def pictures_of(record: Record, inputs: Inputs) -> list[Any]:
    """The record's pictures as RGB PIL images; RecordError for a missing, broken or absurdly large one."""
    from mmrl.data.images import open_image

    try:
        return [
            open_image(i, max_side=inputs.max_image_side, max_pixels=inputs.max_image_pixels) for i in record.images
        ]
    except UserError as error:
        raise RecordError(record.id, str(error)) from error


class Encoder:
    """Turns records into prompts. `fresh()` forgets: prompts are kept for one rollout only, pictures are large."""

    #: What the processor gives beside ids that the model takes, and what makes a prompt shorter.
    MEDIA: tuple[str, ...] = ("pixel_values", "image_grid_thw")
    SHORTER = "inputs.max_pixels"

    def __init__(self, processor: Any, shape: Shape, inputs: Inputs) -> None:
        self.processor, self.shape, self.inputs = processor, shape, inputs
        self._seen: dict[Any, tuple[Record, Prompt]] = {}

    def fresh(self) -> None:
        self._seen.clear()

    def __call__(self, record: Record, edit: str | None = None) -> Prompt:
        return self._once(record, (edit,), lambda: self._encode(record, edit))

    def _once(self, record: Record, further: tuple[Any, ...], make: Callable[[], Prompt]) -> Prompt:
        """The prompt of this record and these further things, made when it is first asked for."""
        key = (id(record), *further)
        if key not in self._seen:
            self._seen[key] = (record, make())  # a record that lives on keeps its id
        return self._seen[key][1]

    def _encode(self, record: Record, edit: str | None) -> Prompt:
        if record.videos:
            raise RecordError(record.id, "videos are not read by family vlm; remove `videos`")
        return self._prompt(record, edit, {})

    def _prompt(self, record: Record, edit: str | None, further: dict[str, Any]) -> Prompt:
        """The prompt of the record's text and pictures; `further` arguments go to the processor."""
        messages = messages_of(record, system=self.inputs.system, edit=edit)
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pictures = pictures_of(record, self.inputs)
        try:
            batch = self.processor(text=[text], images=pictures or None, return_tensors="pt", **further)
        except ValueError as error:  # the processor's own limits, e.g. an aspect ratio above 200
            raise RecordError(record.id, f"the processor refuses it: {error}; mend or remove it") from error
        ids = batch["input_ids"][0].long()
        if len(ids) > self.inputs.max_prompt_tokens:
            raise RecordError(
                record.id,
                f"the prompt has {len(ids)} tokens, more than inputs.max_prompt_tokens "
                f"{self.inputs.max_prompt_tokens}; raise it, shorten the text or lower {self.SHORTER}",
            )
        media = {k: torch.as_tensor(batch[k]) for k in self.MEDIA if k in batch}
        positions = self.shape.positions(ids, media)
        seen = self.shape.picture_sizes(media["image_grid_thw"]) if "image_grid_thw" in media else []
        sizes = [(p.size, s) for p, s in zip(pictures, seen, strict=True)]
        return Prompt(ids, positions, int(positions.max()) + 1, media, text, sizes)

    def response_ids(self, text: str) -> list[int]:
        """Token ids of a completion, without an end token."""
        return list(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def stack(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Any]:
    """Prompts as one batch, padded on the RIGHT: no query is ever without a visible key.

    Returns ids [B, P], mask bool [B, P], positions [3, B, P], lengths [B] and media (pictures one after the other).
    """
    lengths = torch.tensor([len(p) for p in prompts])
    width = int(lengths.max())
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    positions = torch.zeros(3, len(prompts), width, dtype=torch.long)
    for b, prompt in enumerate(prompts):
        ids[b, : len(prompt)] = prompt.ids
        positions[:, b, : len(prompt)] = prompt.positions
    mask = torch.arange(width) < lengths[:, None]
    names = sorted({k for p in prompts for k in p.media})
    media = {k: torch.cat([p.media[k] for p in prompts if k in p.media]).to(device) for k in names}
    return {
        "ids": ids.to(device),
        "mask": mask.to(device),
        "positions": positions.to(device),
        "lengths": lengths.to(device),
        "media": media,
    }
