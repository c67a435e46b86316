"""Folders of picture models: where they lie, which family they are of, and their weights, all of them from the file."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmrl import json_io
from mmrl.errors import UserError
from mmrl.training.exported import looks_local

INDEX = "model_index.json"
#: The family of a model by the class in its model_index.json, or by its name in the package.
FAMILIES = {
    "StableDiffusion3Pipeline": "flow",
    "FluxPipeline": "flow",
    "SanaPipeline": "flow",
    "QwenImagePipeline": "flow",
    "EmbeddedDigits": "flow",
    "embedded:flow": "flow",
    "embedded:compose": "flow",
    "AmusedPipeline": "masked",
    "EmbeddedTokens": "masked",
    "embedded:masked": "masked",
}
_REMEDY = "take a whole copy of the model"
#: What a library reports of weights that are not those of the configuration, and how it is said.
_MISFITS = {"missing_keys": "lacks", "unexpected_keys": "has surplus", "mismatched_keys": "has wrong"}


def attribute(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def local_folder(path: str, *, download: Callable[[str], str]) -> Path:
    """The folder; when the path is the id of a hub, the one that `download` makes of it."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"model.path: {path!r} is a file; give the folder that holds {INDEX}")
    if looks_local(path) or "/" not in path:
        raise UserError(f"model.path: no folder {path!r}; give a folder written by save_pretrained, or a hub id")
    with reading(path):
        return Path(download(path))


def index_of(folder: Path) -> dict[str, Any]:
    """What model_index.json says. Raises UserError for a folder without one, or a broken one."""
    if not (folder / INDEX).is_file():
        hint = "; this is a single model, give the folder above it" if (folder / "config.json").is_file() else ""
        raise UserError(f"model.path: {str(folder)!r} has no {INDEX}, so it is no diffusers pipeline{hint}")
    return json_io.read_object(folder / INDEX, remedy=_REMEDY)


def read_config(file: Path) -> dict[str, Any]:
    """A component's configuration. Raises UserError where it is missing or broken."""
    return json_io.read_object(file, remedy=_REMEDY)


def elsewhere(name: object, family: str) -> str | None:
    """How to train a model of the other family, for the end of a message; None for any other name."""
    other = FAMILIES.get(str(name), family)
    return f"it is trained with family: {other}" if other != family else None


def whole_weights(
    kind: Any, folder: Path, name: str, *, dtype: torch.dtype, misfits: Iterable[str] = tuple(_MISFITS)
) -> Any:
    """The component `name` by `from_pretrained` of its class, every weight from the file: missing, surplus and wrongly
    shaped ones are refused rather than drawn at random. Raises UserError; what the library raises, it raises."""
    model, report = kind.from_pretrained(
        str(folder), subfolder=name, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    for what in misfits:
        names = sorted(k if isinstance(k, str) else str(k[0]) for k in report[what])
        if names:
            raise UserError(
                f"model.path: the {name}'s weights in {str(folder)!r} do not fit its config.json: it {_MISFITS[what]} "
                f"{len(names)} tensors, first {names[0]}"
            )
    return model


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Libraries raise anything over damaged files: here it becomes a UserError, the cause chained to it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0].rstrip(".") if lines else type(error).__name__
        if len(reason.split()) < 3:  # a bare key says nothing without its kind
            reason = f"{type(error).__name__} {reason}"
        raise UserError(
            f"model.path: cannot load {path!r}: {reason}; is it a whole folder written by save_pretrained?"
        ) from error
