"""Entry points of the family: load a policy from a configuration, evaluate it, give the embedded data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from mmrl.config import Config, typed
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.devices import find_device
from mmrl.training.exported import Exported, Wanted
from mmrl.training.precision import is_half
from mmrl.vlm import loading, lora
from mmrl.vlm.adapters import Shape
from mmrl.vlm.config import Adapter, Inputs, Model, Sampling
from mmrl.vlm.embedded_models import resolve
from mmrl.vlm.generate import generate as generate
from mmrl.vlm.merge import merged
from mmrl.vlm.policy import VlmPolicy, form_in_shards, shared_prefix_form

#: Its class attributes (unit, channels, provides) are read before any weights load.
POLICY: type[VlmPolicy] = VlmPolicy


P = TypeVar("P", bound=VlmPolicy)


def load_policy(config: Config) -> VlmPolicy:
    """Model, processor and adapter of `config.model`, on the configured device, ready to train."""
    return from_config(config, VlmPolicy, Inputs)


def from_config(config: Config, kind: type[P], inputs_section: type[Inputs]) -> P:
    """The policy of class `kind` from a configuration whose `inputs` are of that section."""
    options, inputs = typed(config.model, Model), typed(config.inputs, inputs_section)
    if config.distributed.mode == "fsdp2":
        form_in_shards(options)
    return load_as(kind, options, typed(config.sampling, Sampling), inputs, device=config.device)


def load(options: Model, sampling: Sampling, inputs: Inputs, *, device: str = "auto") -> VlmPolicy:
    """The same from the three sections of this family."""
    return load_as(VlmPolicy, options, sampling, inputs, device=device)


def load_as(kind: type[P], options: Model, sampling: Sampling, inputs: Inputs, *, device: str = "auto") -> P:
    """The same for a policy class of a family that stands on this one."""
    shared_prefix_form(options)  # refuse bad pairs before weights load
    if options.adapter.kind == "lora" and options.adapter.dropout > 0 and not options.allow_dropout:
        raise UserError(
            "model.adapter.dropout: dropout is off in every pass; set it to 0, or model.allow_dropout to true"
        )
    if options.adapter.kind == "lora" and options.freeze:
        raise UserError("model.freeze: LoRA trains the adapter only; remove `freeze` or set model.adapter.kind to none")
    where = find_device(device)
    path = resolve(options.path)
    loading.check_folder(path)
    stored_adapter = loading.is_adapter(path)
    base = loading.base_of(path, options.base)
    model: Any = loading.load_model(base, options, dtype=_dtype(options, where))
    processor = loading.load_processor(loading.processor_folder(path, base), options, inputs)
    if stored_adapter:
        model = _with_stored_adapter(model, path, options)
    shape = Shape(model)
    if options.adapter.kind == "lora" and not stored_adapter:
        model = lora.attach(shape, options.adapter)
        model.peft_config["default"].base_model_name_or_path = options.path  # `embedded:vlm` stays portable
    elif options.adapter.kind == "none":
        lora.freeze(shape, list(options.freeze))
    if not options.allow_dropout:
        loading.zero_dropout(model)
    model = model.to(where).eval()
    if options.gradient_checkpointing:
        Shape(model).whole.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("model.freeze: nothing is left to train; freeze fewer parts")
    fresh = options.adapter.kind == "lora" and not stored_adapter
    return kind(model, processor, options=options, sampling=sampling, inputs=inputs, adapter_at_zero=fresh)


def _dtype(options: Model, device: torch.device) -> torch.dtype:
    """float32 for everything that may train; a base below an adapter, on a GPU under autocast, rests in bfloat16."""
    return (
        torch.bfloat16
        if is_half(options.autocast, device) and device.type == "cuda" and options.adapter.kind == "lora"
        else torch.float32
    )


def _with_stored_adapter(model: Any, path: str, options: Model) -> Any:
    """A saved adapter: trained further with adapter.kind lora, merged into the weights otherwise."""
    from peft import PeftModel

    loading.check_adapter_base(path, model)
    asked = _asked(Shape(model), options.adapter)  # before peft replaces the layers
    with loading.reading(f"the adapter of {path!r}"), lora.quiet_peft():
        wrapped = PeftModel.from_pretrained(model, path, is_trainable=options.adapter.kind == "lora")
    if options.adapter.kind == "lora":
        _take_stored_values(wrapped, path, options.adapter, asked)
        if options.base is not None:
            wrapped.peft_config["default"].base_model_name_or_path = options.base
        return wrapped
    return merged(wrapped).requires_grad_(True)


def _asked(shape: Shape, wanted: Adapter) -> dict[str, Any]:
    """The rank, alpha and targets (as names of layers) that were given by the user, not left to their defaults."""
    if wanted.kind != "lora":
        return {}
    names = ("rank", "alpha", "targets")
    asked: dict[str, Any] = {name: getattr(wanted, name) for name in names if name in wanted.model_fields_set}
    if "targets" in asked:
        asked["targets"] = sorted(lora.targets(shape, wanted.targets))
    return asked


def _take_stored_values(wrapped: Any, path: str, wanted: Adapter, asked: dict[str, Any]) -> None:
    """A stored adapter keeps its size: write its rank, alpha and targets into `wanted`, so that the run's own
    config.yaml tells what was trained. Raises UserError for values that were asked for and are not the stored ones."""
    from peft.tuners.lora import LoraLayer

    stored = wrapped.peft_config["default"]
    if isinstance(wrapped.get_output_embeddings(), LoraLayer):  # log-probabilities are made from its plain weight
        raise UserError(
            f"model.adapter: the adapter of {path!r} is on the output layer too, which is not trained further; set "
            "model.adapter.kind to none (the adapter is merged, all weights are trained)"
        )
    inside = wrapped.get_base_model()
    layers = sorted(n for n, m in inside.named_modules() if isinstance(m, LoraLayer))
    values: dict[str, Any] = {"rank": stored.r, "alpha": stored.lora_alpha, "targets": layers}
    if refused := [name for name, value in asked.items() if value != values[name]]:
        said = "; ".join(
            f"{name} {getattr(wanted, name)} is asked for, "
            + (f"{len(layers)} other layers are stored" if name == "targets" else f"{values[name]:g} is stored")
            for name in refused
        )
        raise UserError(
            f"model.adapter: the adapter of {path!r} is trained further as it is ({said}); leave these keys out, or "
            "begin a new adapter on its base model"
        )
    for name in values.keys() - asked.keys():
        setattr(wanted, name, values[name])


def evaluate(policy: VlmPolicy, records: list[Record], config: Config) -> dict[str, float]:
    """Greedy metrics of held-out records."""
    from mmrl.vlm.evaluate import evaluate as run

    return run(policy, records, config)


def first_look(policy: VlmPolicy, records: list[Record], config: Config) -> tuple[dict[str, float], list[str]]:
    """The same, with a line for boxes that seem to be in another frame than the data say."""
    from mmrl.vlm.evaluate import first_look as run

    return run(policy, records, config)


def export(config: Config, out: Path, wanted: Wanted, record: Record) -> Exported:
    """A folder that plain transformers or peft load, compared with the model as the run evaluates it."""
    from mmrl.vlm.export import export as run

    return run(config, out, wanted, record)


def builtin(name: str) -> list[Record]:
    """Embedded data, e.g. digits:train."""
    from mmrl.vlm.scenes import builtin as make

    return make(name)


def chance(records: list[Record], config: Config) -> dict[str, float]:
    """The best constant answer's level of each metric."""
    from mmrl.vlm.evaluate import chance as level

    return level(records, config)
