"""What models in diffusers' folder layout share, in either family: encoding once, sizes, storing."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_gen.pipelines import lora
from image_gen.pipelines.base import Batch, Condition, PictureModel
from image_gen.pipelines.quiet import quiet
from mmrl.errors import UserError

_CHUNK = 16  # prompts that the text encoders read at once

#: A text encoder's tokenizer, the tokens it reads at most, and what is written around a prompt.
Reader = tuple[Any, int, str]


class ComponentsModel(PictureModel):
    """Components under the names of their folders; the keys of a condition are arguments of the transformer's forward.

    pipe is the loaded pipeline, or whatever has its components as attributes and in `components` (its own `__call__`
    is never used); source the local folder it came from; layout the pipeline class that the folder names.
    """

    def __init__(self, pipe: Any, *, source: Path, device: torch.device, layout: str) -> None:
        self.pipe, self.source, self.device, self.layout = pipe, source, device, layout
        self.transformer: Any = pipe.transformer
        self.config: Any = pipe.transformer.config  # kept: the transformer may be wrapped later
        self._encoders = [name for name in pipe.components if name.startswith("text_encoder")]
        self._freed = False

    # prompts

    @abstractmethod
    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """The pipeline's own encoding of a few prompts; batched tensors."""

    @abstractmethod
    def _readers(self) -> list[Reader]:
        """The tokenizers of the text encoders that the pipeline has."""

    def encode(self, prompts: Sequence[str]) -> list[Condition]:
        if self._freed:
            raise RuntimeError("the text encoders have been freed; encode every prompt before free_encoders()")
        for name in self._encoders:
            if getattr(self.pipe, name) is not None:
                getattr(self.pipe, name).to(self.device)
        found: list[Condition] = []
        for start in range(0, len(prompts), _CHUNK):
            with torch.no_grad(), quiet():
                batch = self._encode(list(prompts[start : start + _CHUNK]))
            found += [self._row({key: value[n] for key, value in batch.items()}) for n in range(len(_first(batch)))]
        return found

    def rest_encoders(self) -> None:
        for name in self._encoders:
            if getattr(self.pipe, name, None) is not None:
                getattr(self.pipe, name).to("cpu")

    def _row(self, condition: Condition) -> Condition:
        """Floats in the dtype of the transformer; on the CPU; a copy, so that the batch can go."""
        dtype = self.transformer.dtype
        return {k: v.to("cpu", dtype if v.is_floating_point() else None, copy=True) for k, v in condition.items()}

    def overlong(self, prompts: Sequence[str]) -> list[int]:
        """A prompt counts as read if one of the text encoders reads all of it (SD3 and FLUX: T5, not CLIP)."""
        with quiet():
            return [
                max(0, min(len(tok(around.format(p)).input_ids) - limit for tok, limit, around in self._readers()))
                for p in prompts
            ]

    def free_encoders(self) -> None:
        for name in self._encoders:
            setattr(self.pipe, name, None)
        self._freed = True
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def collate(self, conditions: Sequence[Condition]) -> Batch:
        return {key: torch.stack([c[key] for c in conditions]).to(self.device) for key in conditions[0]}

    # sizes

    @abstractmethod
    def _multiple(self) -> int:
        """Sides of a picture are whole multiples of this."""

    def _largest(self) -> int | None:
        """The longest side, where position embeddings end."""
        return None

    def check_size(self, height: int, width: int) -> None:
        unit, top = self._multiple(), self._largest()
        for name, side in (("height", height), ("width", width)):
            below = min(side // unit * unit, top or side)
            near = sorted({max(unit, below), max(unit, min(below + unit, top or side + unit))})
            if side < 1 or side % unit or (top is not None and side > top):
                limit = "" if top is None else f", at most {top}"
                raise UserError(
                    f"picture size {height}x{width}: {self.layout} takes a {name} in steps of {unit}"
                    f"{limit}, got {side}; nearest: {' or '.join(map(str, near))}"
                )

    # weights

    def save(self, path: Path, *, max_shard_size: str = "10GB") -> None:
        """The transformer by its `save_pretrained`, everything else copied from the folder it was loaded from: text
        encoders may have been freed, and their files stay as they were published. Refused with an adapter attached:
        `save_lora` it, or `lora.merge` it first."""
        if lora.attached(self.transformer):
            raise ValueError("a LoRA is attached: save_lora stores it alone, lora.merge makes it part of the weights")
        path.mkdir(parents=True, exist_ok=True)
        with quiet():
            self.transformer.save_pretrained(path / "transformer", max_shard_size=max_shard_size)
        shutil.copyfile(self.source / "model_index.json", path / "model_index.json")
        for name in self.pipe.components:
            if name != "transformer" and (self.source / name).is_dir():
                shutil.copytree(self.source / name, path / name, dirs_exist_ok=True)


def first_dtype(network: torch.nn.Module) -> torch.dtype:
    """Of its first floating parameter; diffusers' own `.dtype` says the same after a walk over all modules."""
    return next(p.dtype for p in network.parameters() if p.is_floating_point())


def _first(batch: Mapping[str, Tensor]) -> Tensor:
    return next(iter(batch.values()))
