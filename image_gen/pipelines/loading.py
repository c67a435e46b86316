"""Find the adapter of an image pipeline by the class in its model_index.json, and load it by `from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from image_gen.pipelines.base import ImageModel
from image_gen.pipelines.folders import (
    INDEX,
    attribute,
    elsewhere,
    index_of,
    local_folder,
    reading,
    whole_weights,
)
from image_gen.pipelines.quiet import bars
from mmrl.errors import UserError, nearest

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


def load_image_model(
    path: str, *, dtype: torch.dtype, device: torch.device, transformer_dtype: torch.dtype | None = None
) -> ImageModel:
    """A diffusers folder, the id of a hub, embedded:flow or a folder it was saved in. Safetensors only; no code of the
    folder is run.

    dtype: of text encoders and transformer, whatever they are stored in. transformer_dtype: another one for the
    transformer, whose weights are trained in float32 only (a LoRA is float32 in any case). The VAE is float32. Text
    encoders stay on the CPU until `encode`; transformer and VAE go to `device`; eval mode; only the transformer asks
    for a gradient. Raises UserError: no folder, no pipeline, an unknown class or scheduler, a model of family masked,
    damaged files, weights that do not fit their configuration.
    """
    if path.startswith("embedded:"):
        return _embedded(path, dtype=transformer_dtype or dtype, device=device)
    folder = local_folder(path, download=_download)
    index = index_of(folder)
    if index.get("_class_name") in OWN:
        own: ImageModel = attribute(*OWN[index["_class_name"]])(folder, dtype=transformer_dtype or dtype, device=device)
        return own
    kind = pipeline_class(folder)
    with reading(path), bars(folder):
        pipe = _load(folder, kind, index, dtype, transformer_dtype or dtype)
    for part in (pipe.transformer, pipe.vae):
        part.to(device).eval()
    pipe.vae.requires_grad_(False)
    for name, part in pipe.components.items():
        if name.startswith("text_encoder") and part is not None:
            part.eval().requires_grad_(False)
    adapter: ImageModel = attribute(*ADAPTERS[kind])(pipe, source=folder, device=device)
    return adapter


def pipeline_class(folder: Path) -> str:
    """The name of the pipeline class of a local folder; a key of ADAPTERS. Raises UserError for any other."""
    kind = index_of(folder).get("_class_name")
    if kind not in ADAPTERS:
        remedy = elsewhere(kind, "flow") or f"take {', '.join(ADAPTERS)}"
        raise UserError(f"model.path: {str(folder)!r} is a {kind}, which is not supported; {remedy}")
    return str(kind)


def _embedded(path: str, *, dtype: torch.dtype, device: torch.device) -> ImageModel:
    if path not in EMBEDDED:
        remedy = elsewhere(path, "flow")
        if remedy:
            raise UserError(f"model.path: {path!r} is no flow-matching model; {remedy}")
        raise UserError(f"model.path: unknown embedded model {path!r}{nearest(path, EMBEDDED)}")
    model: ImageModel = attribute(*EMBEDDED[path])(dtype=dtype, device=device)
    return model


def _download(path: str) -> str:
    from diffusers import DiffusionPipeline

    return str(DiffusionPipeline.download(path, use_safetensors=True))


def _load(folder: Path, kind: str, index: dict[str, Any], dtype: torch.dtype, transformer_dtype: torch.dtype) -> Any:
    import diffusers

    parts = {name: value for name, value in index.items() if not name.startswith("_")}
    for name, value in parts.items():
        if not isinstance(value, list) or len(value) != 2 or value[0] not in (*_LIBRARIES, None):
            raise UserError(f"model.path: {INDEX} of {str(folder)!r} has an unknown component {name}: {value}")
    named = getattr(diffusers, parts["transformer"][1])
    transformer = whole_weights(named, folder, "transformer", dtype=transformer_dtype)
    dtypes = {"default": dtype, "vae": torch.float32}
    return getattr(diffusers, kind).from_pretrained(
        str(folder), transformer=transformer, dtype=dtypes, use_safetensors=True, local_files_only=True
    )
