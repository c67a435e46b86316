"""Entry points of the family: load a policy from a configuration, evaluate it, give the embedded prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from image_gen.flow.check import check as check
from image_gen.flow.config import Inputs, Model, Sampling
from image_gen.flow.generate import generate as generate
from image_gen.flow.policy import NOTE, FlowPolicy
from image_gen.pipelines import lora
from image_gen.pipelines.base import ImageModel
from image_gen.pipelines.loading import load_image_model
from mmrl.config import Config
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.devices import find_device
from mmrl.training.exported import Exported, Wanted

#: Its class attributes (unit, channels, provides) are read before any weights load.
POLICY: type[FlowPolicy] = FlowPolicy
LORA_FILE = "pytorch_lora_weights.safetensors"


def load_policy(config: Config) -> FlowPolicy:
    """Pipeline and adapter of `config.model`, on the configured device, ready to train."""
    options = config.model if isinstance(config.model, Model) else Model.model_validate(config.model)
    sampling = (
        config.sampling if isinstance(config.sampling, Sampling) else Sampling.model_validate(config.sampling or {})
    )
    inputs = config.inputs if isinstance(config.inputs, Inputs) else Inputs.model_validate(config.inputs or {})
    return load(options, sampling, inputs, device=config.device)


def load(options: Model, sampling: Sampling, inputs: Inputs, *, device: str = "auto") -> FlowPolicy:
    """The same from the three sections of this family."""
    where = find_device(device)
    stored = is_lora(options.path)
    base = base_of(options) if stored else options.path
    frozen, trained = _dtypes(options, where)
    model = load_image_model(base, dtype=frozen, transformer_dtype=trained, device=where)
    fresh = False
    if stored:
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
        lora.checkpoint_gradients(model)
    model.transformer.eval()
    without: Any = (lambda: lora.reference(model)) if fresh else None
    return FlowPolicy(
        model, options=options, sampling=sampling, inputs=inputs, without_adapter=without, base=base if stored else None
    )


def _take_stored_values(model: ImageModel, options: Model) -> None:
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


def base_of(options: Model) -> str:
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


def _dtypes(options: Model, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """(frozen parts, transformer): float32 for everything that may train; what only rests, on a GPU under autocast, is
    in bfloat16."""
    amp = options.autocast == "bf16" or (options.autocast == "auto" and device.type == "cuda")
    resting = torch.bfloat16 if amp and device.type == "cuda" else torch.float32
    return resting, resting if options.adapter.kind == "lora" else torch.float32


def evaluate(policy: FlowPolicy, records: list[Record], config: Config) -> dict[str, float]:
    """Reward, judge and diversity of held-out prompts."""
    from image_gen.evaluate import evaluate as run

    return run(policy, records, config)


def first_look(policy: FlowPolicy, records: list[Record], config: Config) -> tuple[dict[str, float], list[str]]:
    """The same, with a line for each thing that such an evaluation cannot tell."""
    from image_gen.evaluate import first_look as run

    return run(policy, records, config)


def export(config: Config, out: Path, wanted: Wanted, record: Record) -> Exported:
    """A folder that plain diffusers loads, compared with the model as the run evaluates it."""
    from image_gen.flow.export import export as run

    return run(config, out, wanted, record)


def builtin(name: str) -> list[Record]:
    """Embedded prompts, e.g. digits:class."""
    from image_gen.embedded.prompts import builtin as make

    return make(name)


def chance(records: list[Record], config: Config) -> dict[str, float]:
    """The best constant picture's level of the judge, where it is known: the embedded tasks."""
    from image_gen.embedded.prompts import chance as level

    return level(records)
