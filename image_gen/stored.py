"""A picture model as a run trains it: a whole model, a fresh LoRA on it, or a stored LoRA that is trained further."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from image_gen.pipelines import lora
from image_gen.pipelines.base import PictureModel
from image_gen.sections import Adapter
from mmrl.errors import UserError
from mmrl.training.devices import find_device
from mmrl.training.exported import NOTE as NOTE
from mmrl.training.precision import is_half

LORA_FILE = "pytorch_lora_weights.safetensors"

M = TypeVar("M", bound=PictureModel)
M_co = TypeVar("M_co", bound=PictureModel, covariant=True)


class Options(Protocol):
    """What both families have in their `model` section."""

    path: str
    base: str | None
    adapter: Adapter
    autocast: Any
    gradient_checkpointing: bool


@dataclass(frozen=True)
class Ready(Generic[M]):
    """model            on its device, in eval mode, what trains asks for a gradient.
    without_adapter  a context in which a fresh adapter is off, so that it gives the reference; None otherwise.
    base             the model below a stored adapter; None for any other."""

    model: M
    without_adapter: Callable[[], AbstractContextManager[object]] | None
    base: str | None


class Load(Protocol[M_co]):
    def __call__(
        self, path: str, *, dtype: torch.dtype, device: torch.device, transformer_dtype: torch.dtype | None = None
    ) -> M_co: ...


def prepared(options: Options, load: Load[M], *, device: str = "auto") -> Ready[M]:
    """The model of `options.path` by the family's own `load`. Raises UserError."""
    where = find_device(device)
    is_stored = is_lora(options.path)
    base = base_of(options) if is_stored else options.path
    frozen, trained = _dtypes(options, where)
    model = load(base, dtype=frozen, transformer_dtype=trained, device=where)
    fresh = False
    if is_stored:
        model.load_lora(Path(options.path))
        if options.adapter.kind == "none":
            lora.merge(model)
        else:
            _take_stored_values(model, options)
    elif options.adapter.kind == "lora":
        targets = None if options.adapter.targets == "default" else options.adapter.targets
        lora.attach_lora(model, rank=options.adapter.rank, alpha=options.adapter.alpha, targets=targets)
        fresh = True
    if options.adapter.kind == "none":
        model.transformer.requires_grad_(True)
    if options.gradient_checkpointing:
        model.checkpoint_gradients()
    model.transformer.eval()
    without: Any = (lambda: lora.reference(model)) if fresh else None
    return Ready(model, without, base if is_stored else None)


def save(model: PictureModel, path: Path, *, options: Options, family: str, base: str) -> None:
    """What a checkpoint holds: the model's whole folder, or its LoRA alone with a note of what it is of."""
    if options.adapter.kind == "none":
        model.save(path)
        return
    model.save_lora(path)
    write_note(path, family=family, base=base)


def write_note(folder: Path, *, family: str, base: str | None) -> None:
    """Say beside a LoRA which family it is of, and of which model."""
    (folder / NOTE).write_text(json.dumps({"family": family, "base": base}, indent=1) + "\n", encoding="utf-8")


def _take_stored_values(model: PictureModel, options: Options) -> None:
    """A stored adapter keeps its size: write it into the options, so that the run's own config.yaml tells what was
    trained. Raises UserError for values that were asked for and are not the stored ones."""
    stored: Any = model.transformer.peft_config[lora.NAME]  # type: ignore[union-attr,index]
    adapter = options.adapter
    for name, value in {"rank": stored.r, "alpha": stored.lora_alpha}.items():
        asked = getattr(adapter, name)
        if name in adapter.model_fields_set and asked != value:
            raise UserError(
                f"model.adapter: the LoRA of {options.path!r} is trained further as it is ({name} {asked:g} is asked "
                f"for, {value:g} is stored); leave {name} out, or begin a new adapter on its base model"
            )
    layers = {n.rsplit(".lora_A", 1)[0] for n, _ in model.transformer.named_parameters() if ".lora_A" in n}
    if adapter.targets != "default" and any(not layer.endswith(tuple(adapter.targets)) for layer in layers):
        raise UserError(
            f"model.adapter: the LoRA of {options.path!r} is trained further on its own layers; leave targets out"
        )
    adapter.rank, adapter.alpha = int(stored.r), float(stored.lora_alpha)


def is_lora(path: str) -> bool:
    """A folder that holds a diffusers LoRA and no pipeline."""
    folder = Path(path)
    return (folder / LORA_FILE).is_file() and not (folder / "model_index.json").is_file()


def base_of(options: Options) -> str:
    """The model below a stored LoRA: model.base, else the one written beside it."""
    if options.base is not None:
        return options.base
    note = Path(options.path) / NOTE
    if not note.is_file():
        raise UserError(f"model.path: {options.path} is a LoRA that does not say of which model; name it in model.base")
    try:
        base = json.loads(note.read_text(encoding="utf-8"))["base"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{note}: broken ({error}); name the base model in model.base") from error
    return str(base)


def _dtypes(options: Options, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """(frozen parts, transformer): float32 for everything that may train; what only rests, on a GPU under autocast, is
    in bfloat16."""
    resting = torch.bfloat16 if is_half(options.autocast, device) and device.type == "cuda" else torch.float32
    return resting, resting if options.adapter.kind == "lora" else torch.float32
