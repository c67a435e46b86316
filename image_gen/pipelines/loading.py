"""Find the adapter of an image pipeline by the class in its model_index.json, and load it by `from_pretrained`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from image_gen.pipelines.base import ImageModel
from mmrl import json_io
from mmrl.errors import UserError, nearest
from mmrl.training.exported import looks_local

INDEX = "model_index.json"
#: Adapters by the pipeline class: module and name. A new architecture is a line here and a subclass.
ADAPTERS = {
    "StableDiffusion3Pipeline": ("image_gen.pipelines.sd3", "SD3"),
    "FluxPipeline": ("image_gen.pipelines.flux", "Flux"),
    "SanaPipeline": ("image_gen.pipelines.sana", "Sana"),
    "QwenImagePipeline": ("image_gen.pipelines.qwen_image", "QwenImage"),
}
#: Models inside the package: a function of (dtype, device).
EMBEDDED = {
    "embedded:flow": ("image_gen.embedded.model", "load"),
    "embedded:compose": ("image_gen.embedded.model", "load_compose"),
}
#: Models of this package in folders of their own, by the class in model_index.json: a function of the folder as well.
OWN = {"EmbeddedDigits": EMBEDDED["embedded:flow"]}
_LIBRARIES = ("diffusers", "transformers")
_REMEDY = "take a whole copy of the model"
_BAR_FROM_BYTES = 1_000_000_000


def load_image_model(
    path: str, *, dtype: torch.dtype, device: torch.device, transformer_dtype: torch.dtype | None = None
) -> ImageModel:
    """A diffusers folder, the id of a hub, embedded:flow or a folder it was saved in. Safetensors only; no code of the
    folder is run.

    dtype: of text encoders and transformer, whatever they are stored in. transformer_dtype: another one for the
    transformer, whose weights are trained in float32 only (a LoRA is float32 in any case). The VAE is float32. Text
    encoders stay on the CPU until `encode`; transformer and VAE go to `device`; eval mode; only the transformer asks
    for a gradient. Raises UserError: no folder,
    no pipeline, an unknown class or scheduler, damaged files, weights that do not fit their configuration.
    """
    if path.startswith("embedded:"):
        if path not in EMBEDDED:
            raise UserError(f"model.path: unknown embedded model {path!r}{nearest(path, EMBEDDED)}")
        model: ImageModel = _attribute(*EMBEDDED[path])(dtype=transformer_dtype or dtype, device=device)
        return model
    folder = _local(path)
    index = json_io.read_object(folder / INDEX, remedy=_REMEDY) if (folder / INDEX).is_file() else {}
    if index.get("_class_name") in OWN:
        own: ImageModel = _attribute(*OWN[index["_class_name"]])(
            folder, dtype=transformer_dtype or dtype, device=device
        )
        return own
    kind = pipeline_class(folder)
    with _reading(path), _bars(folder):
        pipe = _load(folder, kind, index, dtype, transformer_dtype or dtype)
    for part in (pipe.transformer, pipe.vae):
        part.to(device).eval()
    pipe.vae.requires_grad_(False)
    for name, part in pipe.components.items():
        if name.startswith("text_encoder") and part is not None:
            part.eval().requires_grad_(False)
    adapter: ImageModel = _attribute(*ADAPTERS[kind])(pipe, source=folder, device=device)
    return adapter


def pipeline_class(folder: Path) -> str:
    """The name of the pipeline class of a local folder; a key of ADAPTERS. Raises UserError for any other."""
    if not (folder / INDEX).is_file():
        hint = "; this is a single model, give the folder above it" if (folder / "config.json").is_file() else ""
        raise UserError(f"model.path: {str(folder)!r} has no {INDEX}, so it is no diffusers pipeline{hint}")
    kind = json_io.read_object(folder / INDEX, remedy=_REMEDY).get("_class_name")
    if kind not in ADAPTERS:
        raise UserError(f"model.path: {str(folder)!r} is a {kind}, which is not supported; take {', '.join(ADAPTERS)}")
    return str(kind)


def _attribute(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _local(path: str) -> Path:
    """The folder, downloaded first when the path is the id of a hub."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"model.path: {path!r} is a file; give the folder that holds {INDEX}")
    if looks_local(path) or "/" not in path:
        raise UserError(f"model.path: no folder {path!r}; give a folder written by save_pretrained, or a hub id")
    from diffusers import DiffusionPipeline

    with _reading(path):
        return Path(DiffusionPipeline.download(path, use_safetensors=True))


def _load(folder: Path, kind: str, index: dict[str, Any], dtype: torch.dtype, transformer_dtype: torch.dtype) -> Any:
    import diffusers

    parts = {name: value for name, value in index.items() if not name.startswith("_")}
    for name, value in parts.items():
        if not isinstance(value, list) or len(value) != 2 or value[0] not in (*_LIBRARIES, None):
            raise UserError(f"model.path: {INDEX} of {str(folder)!r} has an unknown component {name}: {value}")
    transformer = _transformer(getattr(diffusers, parts["transformer"][1]), folder, transformer_dtype)
    dtypes = {"default": dtype, "vae": torch.float32}
    return getattr(diffusers, kind).from_pretrained(
        str(folder), transformer=transformer, dtype=dtypes, use_safetensors=True, local_files_only=True
    )


def _transformer(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Every weight from the file: missing, surplus and wrongly shaped ones are refused rather than drawn at random."""
    model, report = kind.from_pretrained(
        str(folder), subfolder="transformer", dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    for what, verb in (("missing_keys", "lacks"), ("unexpected_keys", "has surplus"), ("mismatched_keys", "has wrong")):
        names = sorted(k if isinstance(k, str) else str(k[0]) for k in report[what])
        if names:
            raise UserError(
                f"model.path: the transformer's weights in {str(folder)!r} do not fit its config.json: it {verb} "
                f"{len(names)} tensors, first {names[0]}"
            )
    return model


@contextmanager
def _reading(path: str) -> Iterator[None]:
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


def _bars(folder: Path) -> Any:
    """Progress bars of the libraries for models large enough to wait for."""
    from image_gen.pipelines.common import quiet

    size = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
    return quiet() if size < _BAR_FROM_BYTES else nullcontext()
