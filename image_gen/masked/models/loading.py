"""Find and load a token model: a folder in aMUSEd's layout component by component, or the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from image_gen.masked.models.base import TokenModel
from image_gen.pipelines.folders import (
    INDEX,
    attribute,
    elsewhere,
    index_of,
    local_folder,
    read_config,
    reading,
    whole_weights,
)
from image_gen.pipelines.quiet import bars, quiet
from mmrl.errors import UserError, nearest

#: The one pipeline class whose folders are taken, by name: the class itself is no longer maintained and not used.
LAYOUT = "AmusedPipeline"
#: Components of such a folder, and the classes that they may be of.
COMPONENTS = {
    "transformer": ("UVit2DModel",),
    "vqvae": ("VQModel",),
    "text_encoder": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": ("AmusedScheduler",),
}
#: Models inside the package: a function of (dtype, device).
EMBEDDED = {"embedded:masked": ("image_gen.embedded.masked_model", "load")}
#: Models of this package in folders of their own, by the class in model_index.json: a function of the folder as well.
OWN = {"EmbeddedTokens": EMBEDDED["embedded:masked"]}
_MASK_SCHEDULES = ("cosine", "linear")


def load_token_model(
    path: str, *, dtype: torch.dtype, device: torch.device, transformer_dtype: torch.dtype | None = None
) -> TokenModel:
    """A folder in aMUSEd's layout, the id of a hub, embedded:masked or a folder it was saved in. Safetensors only; no
    code of the folder is run.

    dtype: of text encoder and transformer, whatever they are stored in. transformer_dtype: another one for the
    transformer. The VQ model is float32 (in float16 its decoder gives NaN). The text encoder stays on the CPU until
    `encode`; transformer and VQ model go to `device`; eval mode; only the transformer asks for a gradient. Raises
    UserError: no folder, another class or scheduler, a model of family flow, damaged files, weights that do not fit
    their configuration, a codebook beyond the vocabulary, a mask id within the codebook.
    """
    if path.startswith("embedded:"):
        return _embedded(path, dtype=transformer_dtype or dtype, device=device)
    folder = local_folder(path, download=_download)
    index = index_of(folder)
    kind = index.get("_class_name")
    if kind in OWN:
        own: TokenModel = attribute(*OWN[kind])(folder, dtype=transformer_dtype or dtype, device=device)
        return own
    if kind != LAYOUT:
        remedy = elsewhere(kind, "masked") or f"take a folder in the layout of {LAYOUT}"
        raise UserError(f"model.path: {str(folder)!r} is a {kind}, not a masked-diffusion model; {remedy}")
    _check_classes(folder, index)
    _check_ids(folder)
    with reading(path), bars(folder):
        parts = _load(folder, dtype, transformer_dtype or dtype)
    for part in (parts.vqvae, parts.text_encoder):
        part.eval().requires_grad_(False)
    parts.transformer.to(device).eval()
    parts.vqvae.to(device)
    from image_gen.masked.models.amused import Amused

    return Amused(parts, source=folder, device=device)


def _embedded(path: str, *, dtype: torch.dtype, device: torch.device) -> TokenModel:
    if path not in EMBEDDED:
        remedy = elsewhere(path, "masked")
        if remedy:
            raise UserError(f"model.path: {path!r} is no masked-diffusion model; {remedy}")
        raise UserError(f"model.path: unknown embedded model {path!r}{nearest(path, EMBEDDED)}")
    model: TokenModel = attribute(*EMBEDDED[path])(dtype=dtype, device=device)
    return model


def _download(path: str) -> str:
    """Only what is loaded: configurations, tokenizer files and float32 safetensors of the components."""
    from huggingface_hub import snapshot_download

    endings = ("json", "txt", "safetensors")
    wanted = [INDEX, *(f"{name}/*.{ending}" for name in COMPONENTS for ending in endings)]
    return str(snapshot_download(path, allow_patterns=wanted, ignore_patterns=["*.fp16.*"]))


def _check_classes(folder: Path, index: dict[str, Any]) -> None:
    """Every component is there under its class."""
    for name, kinds in COMPONENTS.items():
        value = index.get(name)
        found = value[1] if isinstance(value, list) and len(value) == 2 else value
        if found not in kinds:
            raise UserError(f"model.path: {name} of {str(folder)!r} must be {kinds[0]}, {INDEX} says {value}")
    found = _configuration(folder, "scheduler").get("_class_name")
    if found not in COMPONENTS["scheduler"]:
        raise UserError(f"model.path: the scheduler of {str(folder)!r} is {found}; a mask schedule is AmusedScheduler")


def _configuration(folder: Path, name: str) -> dict[str, Any]:
    return read_config(folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json"))


def _check_ids(folder: Path) -> None:
    """Tokens, mask and decoder speak of the same ids; the checks need the configurations alone."""
    config = {name: _configuration(folder, name) for name in ("transformer", "vqvae", "scheduler")}
    net, vq, scheduler = config["transformer"], config["vqvae"], config["scheduler"]
    vocabulary, codebook = _whole(folder, net, "vocab_size", 8256), _whole(folder, net, "codebook_size", 8192)
    entries, mask = _whole(folder, vq, "num_vq_embeddings", 256), _whole(folder, scheduler, "mask_token_id", None)
    where = f"model.path: {str(folder)!r}"
    if codebook > vocabulary:
        raise UserError(f"{where}: its codebook of {codebook} ids is larger than its vocabulary of {vocabulary}")
    if not codebook <= mask < vocabulary:
        raise UserError(
            f"{where}: mask_token_id is {mask}; the mask must lie beyond the codebook ({codebook} ids) and within the "
            f"vocabulary ({vocabulary})"
        )
    if entries != codebook:
        raise UserError(f"{where}: the transformer draws {codebook} ids, the VQ model decodes {entries}")
    if not vq.get("lookup_from_codebook"):
        raise UserError(f"{where}: its VQ model does not decode ids; lookup_from_codebook must be true")
    if bool(net.get("downsample")) != bool(net.get("upsample")):
        raise UserError(f"{where}: downsample and upsample of the transformer must agree, or a canvas changes its size")
    if scheduler.get("masking_schedule", "cosine") not in _MASK_SCHEDULES:
        raise UserError(
            f"{where}: masking_schedule {scheduler['masking_schedule']!r} is not known; "
            f"take {' or '.join(_MASK_SCHEDULES)}"
        )


def _whole(folder: Path, config: dict[str, Any], key: str, default: int | None) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"model.path: {key} in {str(folder)!r} must be a whole number, found {value!r}")
    return value


def _load(folder: Path, dtype: torch.dtype, transformer_dtype: torch.dtype) -> Any:
    from diffusers import AmusedScheduler, UVit2DModel, VQModel
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    from image_gen.masked.models.amused import Parts

    with quiet():
        # old text encoders have surplus position ids, which are no weights
        encoder = whole_weights(
            CLIPTextModelWithProjection,
            folder,
            "text_encoder",
            dtype=dtype,
            misfits=("missing_keys", "mismatched_keys"),
        )
        tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    return Parts(
        transformer=whole_weights(UVit2DModel, folder, "transformer", dtype=transformer_dtype),
        vqvae=whole_weights(VQModel, folder, "vqvae", dtype=torch.float32),
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=AmusedScheduler.from_pretrained(str(folder / "scheduler"), local_files_only=True),
    )
