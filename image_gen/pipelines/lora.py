"""LoRA on the transformer of an image model, by peft: attach, switch off, store, load, merge."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmrl.errors import UserError, nearest

if TYPE_CHECKING:
    from image_gen.pipelines.base import PictureModel

NAME = "default"
FILE = "pytorch_lora_weights.safetensors"
#: Before the name of every layer, as in the files of diffusers.
PREFIX = "transformer"
#: Where the file's header holds the configuration.
METADATA = "lora_adapter_metadata"
#: Shapes by name, and the class of the transformer if it is known.
Stored = tuple[dict[str, tuple[int, ...]], str | None]


def attached(transformer: nn.Module) -> bool:
    return bool(getattr(transformer, "peft_config", None))


def attach_lora(
    model: PictureModel,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] | None = None,
    init: str | bool = "gaussian",
) -> None:
    """Freeze the transformer and attach a fresh adapter: float32, trainable, its output zero at the start.

    targets: endings of the names of linear layers; None takes the model's `lora_targets`. init: peft's
    `init_lora_weights`; gaussian draws A from N(0, 1 / rank) with torch's global generator, B is 0. Raises UserError
    for a target that is no linear layer.
    """
    from peft import LoraConfig

    transformer: Any = model.transformer
    if attached(transformer):
        raise ValueError("the transformer has an adapter already")
    if rank < 1:
        raise UserError(f"adapter: rank must be at least 1, got {rank}")
    names = list(model.lora_targets if targets is None else targets)
    _check_targets(transformer, names)
    transformer.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=init, target_modules=names)  # type: ignore[arg-type]
    transformer.add_adapter(config, adapter_name=NAME)
    _trainable(transformer)


def _check_targets(transformer: nn.Module, names: Sequence[str]) -> None:
    linear = [n for n, m in transformer.named_modules() if isinstance(m, nn.Linear)]
    for name in names:
        if not any(n == name or n.endswith(f".{name}") for n in linear):
            endings = {n.split(".", 2)[-1] for n in linear}
            raise UserError(f"adapter: no linear layer is called {name!r}{nearest(name, endings)}")


def _trainable(transformer: nn.Module) -> None:
    """Gradient for the adapter and for nothing else; its weights in float32 whatever the base is stored in."""
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@contextmanager
def reference(model: PictureModel) -> Iterator[None]:
    """The model as it was before the adapter: switched off inside, on again after. Raises ValueError without one.

    peft takes the adapter's gradient away meanwhile: call it in no_grad, and not between a forward and its backward
    when the forward is recomputed (gradient checkpointing).
    """
    transformer: Any = model.transformer
    if not attached(transformer):
        raise ValueError("the transformer has no adapter to switch off")
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()


def merge(model: PictureModel) -> None:
    """Make the adapter part of the weights and remove it; without one, nothing."""
    transformer: Any = model.transformer
    if attached(transformer):
        transformer.fuse_lora()
        transformer.unload_lora()


def save(transformer: Any, path: Path) -> None:
    """The folder that `load_lora_weights` of a pipeline takes, and where it has none `load_lora_adapter` of its
    transformer: layers below `transformer.`; rank, alpha, targets and the class of the transformer in the metadata (as
    peft's own configuration)."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    if not attached(transformer):
        raise ValueError("the transformer has no adapter to save")
    config = transformer.peft_config[NAME].to_dict() | {
        "auto_mapping": {"base_model_class": type(transformer).__name__}
    }
    told = {f"{PREFIX}.{key}": sorted(v) if isinstance(v, set) else v for key, v in config.items()}
    layers = {
        f"{PREFIX}.{name}": value.detach().cpu().contiguous()
        for name, value in get_peft_model_state_dict(transformer).items()
    }
    path.mkdir(parents=True, exist_ok=True)
    save_file(layers, path / FILE, metadata={"format": "pt", METADATA: json.dumps(told, indent=2, sort_keys=True)})


def load(transformer: Any, path: Path) -> None:
    """Attach a stored adapter, trainable. Raises UserError for no adapter, a damaged one, one of another model."""
    if attached(transformer):
        raise ValueError("the transformer has an adapter already")
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: holds no {FILE}; give a folder written by save_lora_weights")
    _check_fit(_stored(file), transformer, file)
    with _calm():
        try:
            transformer.load_lora_adapter(
                str(file.parent),
                prefix=PREFIX,
                weight_name=file.name,
                adapter_name=NAME,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=True,  # nothing is drawn at random first
            )
        except Exception as error:  # libraries raise anything over damaged metadata
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"{file}: cannot be loaded: {type(error).__name__} {reason}") from error
    _trainable(transformer)


def _stored(file: Path) -> Stored:
    """From the header; no weight is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            names, metadata = list(opened.keys()), opened.metadata() or {}
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); copy it again") from error
    return shapes, _made_for(metadata, file)


def _made_for(metadata: dict[str, str], file: Path) -> str | None:
    """The class of the transformer, where the file says it."""
    try:
        config = json.loads(metadata.get(METADATA, "{}"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: its metadata are broken ({error}); copy it again") from error
    mapping = config.get(f"{PREFIX}.auto_mapping") if isinstance(config, dict) else None
    return mapping.get("base_model_class") if isinstance(mapping, dict) else None


def _check_fit(stored: Stored, transformer: nn.Module, file: Path) -> None:
    """Made for this class, and every stored pair of matrices has its layer, of the right width."""
    shapes, made_for = stored
    modules, kind = dict(transformer.named_modules()), type(transformer).__name__
    if not shapes:
        raise UserError(f"{file}: the adapter is empty")
    if made_for not in (None, kind):
        raise UserError(f"{file}: a LoRA of another model: it was made for a {made_for}, this is a {kind}")
    for name, shape in shapes.items():
        layer, _, matrix = name.removeprefix(f"{PREFIX}.").rpartition(".lora_")
        if not name.startswith(f"{PREFIX}.") or matrix not in ("A.weight", "B.weight"):
            raise UserError(
                f"{file}: {name} is not LoRA of a transformer in diffusers' format; load the file in diffusers and "
                "write it again with save_lora_weights"
            )
        weight = getattr(modules.get(layer), "weight", None)
        if weight is None or weight.dim() != 2:
            raise UserError(f"{file}: a LoRA of another model: this {kind} has no linear layer {layer}")
        side = 1 if matrix == "A.weight" else 0
        if shape[side] != weight.shape[side]:
            raise UserError(
                f"{file}: a LoRA of another model: {layer} is {list(weight.shape)} in this {kind}, the adapter's "
                f"{name.rsplit('.', 2)[-2]} is {list(shape)}"
            )


@contextmanager
def _calm() -> Iterator[None]:
    """diffusers logs an error before it raises it, and that text encoders have no LoRA; one line is enough."""
    logger = logging.getLogger("diffusers.loaders")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            yield
    finally:
        logger.setLevel(level)
