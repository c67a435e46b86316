"""LoRA by peft, put into the native model in place; stored under the names of the released modules.

So an adapter that was trained here loads in peft on top of the release's own code, and one trained there loads here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dlm.embedded import resolve
from dlm.models.layers import Transformer
from dlm.models.layout import LINEAR, Layout
from dlm.models.loading import layout_named
from mmrl.errors import UserError, nearest
from mmrl.training import model_folder
from mmrl.training.model_folder import adapter_config, check_folder, is_adapter, reading

if TYPE_CHECKING:
    from dlm.config import Adapter, Model

__all__ = [
    "attach",
    "base_of",
    "is_adapter",
    "load",
    "matched",
    "merge",
    "reference",
    "save",
    "take_stored_values",
    "targets",
]

NAME = "default"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
#: Keys of adapter_config.json whose other values are not plain LoRA.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "trainable_token_indices": ([], {}, None),
    "layer_replication": ([], None),
    "fan_in_fan_out": (False, None),
}


def base_of(path: str, given: str | None = None) -> str:
    """`model_folder.base_of`, with the embedded models of this family."""
    return model_folder.base_of(path, given, resolve=resolve)


def targets(model: Transformer, wanted: Sequence[str] | str = "default") -> list[str]:
    """Full names of the linear layers that get an adapter; the output layer never does.

    wanted  default: the seven linear layers of every transformer layer. d1: those of them that the d1 list (q, k, v, o,
            up, down, gate _proj) matches in the released module, on LLaDA q, k, v, up only. Else names, this package's
            or the release's, whole or their endings. Raises UserError for a name that matches nothing, and without
            any name.
    """
    linear = [n for n in _linear(model) if n.startswith("model.layers.")]
    if isinstance(wanted, str):
        wanted = {"default": LINEAR, "d1": model.traits.lora_targets}[wanted]
    if not wanted:
        raise UserError(
            "model.adapter.targets: [] names no layer; leave it out for all seven linear layers, or name some "
            f"({', '.join(LINEAR)})"
        )
    layout = layout_named(model.traits.name)
    called = {n: (n, layout.released(n)) for n in linear}
    found: set[str] = set()
    for name in wanted:
        hits = {n for n, both in called.items() if any(b == name or b.endswith("." + name) for b in both)}
        if not hits:
            endings = {b.rsplit(".", 1)[-1] for both in called.values() for b in both}
            raise UserError(f"model.adapter.targets: no linear layer is called {name!r}{nearest(name, endings)}")
        found |= hits
    return [n for n in linear if n in found]


def matched(model: Transformer, names: Sequence[str] | None = None) -> dict[str, int]:
    """How many layers of each kind, by the ending of their released names: {'attn_out': 32, ...}. For a report.

    names  full names, as from `targets`; None: the layers that have an adapter.
    """
    layout = layout_named(model.traits.name)
    chosen = [n for n, _ in _adapted(model)] if names is None else names
    return dict(Counter(layout.released(n).rsplit(".", 1)[-1] for n in chosen))


def _linear(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers, under an adapter or not, by the names they have without one."""
    from peft.tuners.lora import LoraLayer

    found: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        layer = module.get_base_layer() if isinstance(module, LoraLayer) else module
        if isinstance(layer, nn.Linear) and ".base_layer" not in name and ".lora_" not in name:
            found[name] = layer
    return found


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers that have an adapter, in order."""
    from peft.tuners.lora import LoraLayer

    return [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]


def attach(model: Transformer, options: Adapter, *, base: str | None = None) -> Transformer:
    """A fresh adapter in the model, which is returned: float32, trainable, its output zero at the start; all other
    weights frozen. The first factor is drawn by torch's global generator.

    base  what adapter_config.json will name as base model. Raises ValueError when there is an adapter already.
    """
    names = targets(model, options.targets)
    return _inject(model, names, base, r=options.rank, lora_alpha=options.alpha)


def _inject(model: Transformer, names: list[str], base: str | None, **options: Any) -> Transformer:
    from peft import LoraConfig, inject_adapter_in_model

    if _adapted(model):
        raise ValueError("the model has an adapter already")
    model.requires_grad_(False)
    config = LoraConfig(target_modules=list(names), base_model_name_or_path=base, **options)
    inject_adapter_in_model(config, model, adapter_name=NAME)
    for parameter in _factors(model).values():
        parameter.data = parameter.data.float() if parameter.dtype != torch.float64 else parameter.data
        parameter.requires_grad_(True)
    return model


def _factors(model: Transformer) -> dict[str, nn.Parameter]:
    """`<layer>.lora_A` and `.lora_B` -> parameter."""
    found = {}
    for name, layer in _adapted(model):
        found[f"{name}.lora_A"] = layer.lora_A[NAME].weight
        found[f"{name}.lora_B"] = layer.lora_B[NAME].weight
    return found


def _config(model: Transformer) -> Any:
    if not _adapted(model):
        raise ValueError("the model has no adapter")
    return model.peft_config[NAME]  # type: ignore[index]  # peft sets it


@contextmanager
def reference(model: Transformer) -> Iterator[None]:
    """The model as it was before the adapter: switched off inside, on again after. Raises ValueError without one.

    peft takes the adapter's gradient away meanwhile: call it in no_grad, and not between a forward and its backward
    when the forward is recomputed (gradient checkpointing).
    """
    _config(model)
    trained = [(p, p.requires_grad) for p in _factors(model).values()]
    for _, layer in _adapted(model):
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in _adapted(model):
            layer.enable_adapters(True)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)


def merge(model: Transformer) -> Transformer:
    """Make the adapter part of the weights and remove it; without one, nothing. Returns the model, all of it frozen
    as it is. Raises UserError when a weight would not be finite."""
    for name, layer in _adapted(model):
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise UserError(f"model.path: the adapter cannot be merged into {name}: {error}") from error
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model


def save(model: Transformer, path: str | Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, named as peft on the released module names them."""
    from safetensors.torch import save_file

    config, layout = _config(model), layout_named(model.traits.name)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, value in _factors(model).items():
        layer, _, factor = name.rpartition(".")
        tensors[f"{_PREFIX}{layout.released(layer)}.{factor}.weight"] = value.detach().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    kept = config.target_modules
    config.target_modules, config.inference_mode = _released_targets(model, layout), True
    try:
        config.save_pretrained(str(folder))
    finally:
        config.target_modules, config.inference_mode = kept, False


def _released_targets(model: Transformer, layout: Layout) -> set[str] | str:
    """What peft is to match in the released module: endings of names, or a pattern where they match too much.

    LLaDA's down projection and its output layer are both called ff_out.
    """
    chosen = {layout.released(n) for n, _ in _adapted(model)}
    linear = [layout.released(n) for n in _linear(model)]
    endings = {n.rsplit(".", 1)[-1] for n in chosen}
    if {n for n in linear if n.rsplit(".", 1)[-1] in endings} == chosen:
        return endings
    kinds = sorted({re.sub(r"\.\d+\.", ".N.", n) for n in chosen})
    pattern = "|".join(re.escape(kind).replace(r"\.N\.", r"\.\d+\.") for kind in kinds)
    return pattern if {n for n in linear if re.fullmatch(pattern, n)} == chosen else chosen


def load(model: Transformer, path: str, *, trainable: bool = False, base: str | None = None) -> Transformer:
    """Put a stored adapter into the model, which is returned, all other weights frozen.

    base  what the adapter names as its base model from now on; None keeps its own words. Raises UserError: no adapter,
    a pickle, a damaged one, another kind than plain LoRA, layers or sizes that this model does not have.
    """
    if not is_adapter(path):
        raise UserError(f"model.path: {path!r} has no adapter_config.json; give a folder written by peft")
    check_folder(path)
    config = adapter_config(path)
    for key, plain in _PLAIN.items():
        if key in config and config[key] not in plain:
            raise UserError(f"model.path: {path}/adapter_config.json: {key} {config[key]!r}: only plain LoRA is taken")
    factors = _stored(model, path)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise UserError(
            f"model.path: {path}/adapter_config.json lacks r or lora_alpha; take a whole copy of the adapter"
        )
    _check_sizes(model, factors, rank, path)
    names = sorted({n.rpartition(".")[0] for n in factors})
    said = base or config.get("base_model_name_or_path")
    _inject(model, names, said, r=rank, lora_alpha=alpha, use_rslora=bool(config.get("use_rslora", False)))
    for name, parameter in _factors(model).items():
        parameter.data = factors[name].to(parameter.dtype)
        parameter.requires_grad_(trainable)
    return model


def _stored(model: Transformer, path: str) -> dict[str, Tensor]:
    """The factors of an adapter under this package's names."""
    from safetensors.torch import load_file

    with reading(f"the adapter of {path!r}"):
        tensors = load_file(Path(path) / WEIGHTS)
    layout, known = layout_named(model.traits.name), set(targets(model))
    found = {}
    for stored, value in tensors.items():
        layer, _, factor = stored.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        own = layout.ours(layer)
        if own not in known or factor not in ("lora_A", "lora_B"):
            raise UserError(
                f"model.path: {path!r} is an adapter of another model: {stored} has no place in a {layout.name} model "
                f"of {model.shape.layers} layers"
            )
        found[f"{own}.{factor}"] = value
    lone = [n for n in found if f"{n[:-1]}{'B' if n.endswith('A') else 'A'}" not in found]
    if not found or lone:
        raise UserError(
            f"model.path: {path}/{WEIGHTS}: {'is empty' if not found else f'lacks the other factor of {lone[0]}'}; "
            "take a whole copy of the adapter"
        )
    return found


def _check_sizes(model: Transformer, factors: dict[str, Tensor], rank: int, path: str) -> None:
    linear = _linear(model)
    for name, value in factors.items():
        layer, _, factor = name.rpartition(".")
        below = linear[layer]
        expected = (rank, below.in_features) if factor == "lora_A" else (below.out_features, rank)
        if tuple(value.shape) != expected:
            raise UserError(
                f"model.path: {path!r} is an adapter of another model: {name} is {list(value.shape)}, "
                f"expected {list(expected)}"
            )


def take_stored_values(model: Transformer, options: Model) -> None:
    """A stored adapter keeps its size: write its rank, alpha and targets into `options.adapter`, so that the run's own
    config.yaml tells what was trained. Raises UserError for values that were asked for and are not the stored ones."""
    wanted, stored = options.adapter, _config(model)
    layers = [n for n, _ in _adapted(model)]
    values: dict[str, Any] = {"rank": stored.r, "alpha": stored.lora_alpha, "targets": layers}
    said = []
    for name in values.keys() & wanted.model_fields_set:
        asked = targets(model, wanted.targets) if name == "targets" else getattr(wanted, name)
        if asked != values[name]:
            told = f"{len(layers)} other layers are stored" if name == "targets" else f"{values[name]:g} is stored"
            said.append(f"{name} {getattr(wanted, name)} is asked for, {told}")
    if said:
        raise UserError(
            f"model.adapter: the adapter of {options.path!r} is trained further as it is ({'; '.join(sorted(said))}); "
            "leave these keys out, or begin a new adapter on its base model"
        )
    for name in values.keys() - wanted.model_fields_set:
        setattr(wanted, name, values[name])
