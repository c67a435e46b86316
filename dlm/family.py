"""Entry points of the family: load a policy from a configuration, evaluate it, give the generated tasks."""

from __future__ import annotations

from pathlib import Path

import torch

from dlm.check import check as check
from dlm.config import Inputs, Model, Sampling
from dlm.embedded import resolve
from dlm.generate import generate as generate
from dlm.joined import joined as joined
from dlm.likelihood import registry
from dlm.models import lora
from dlm.models.loading import load_model
from dlm.policy import ElboPolicy, TokenPolicy
from mmrl import config_io
from mmrl.config import Config, typed
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.devices import find_device
from mmrl.training.exported import Exported, Wanted
from mmrl.training.policy import Policy

#: The one of a plain configuration; `policy_class` knows better.
POLICY: type[Policy] = ElboPolicy


def policy_class(config: Config) -> type[ElboPolicy]:
    """Which values the table of this run will hold: terms of a bound, or a log-probability a position."""
    if config_io.recipe_of(config).experience == "records":
        return TokenPolicy
    return TokenPolicy if registry.unit_of(sections(config)[1].likelihood.name) == "decision" else ElboPolicy


def sections(config: Config) -> tuple[Model, Sampling, Inputs]:
    """The family's own sections, typed."""
    return typed(config.model, Model), typed(config.sampling, Sampling), typed(config.inputs, Inputs)


def load_policy(config: Config) -> ElboPolicy:
    """Model, tokenizer and adapter of `config.model`, on the configured device, ready to train."""
    return load(*sections(config), device=config.device, kind=policy_class(config))


def load(
    options: Model, sampling: Sampling, inputs: Inputs, *, device: str = "auto", kind: type[ElboPolicy] = TokenPolicy
) -> ElboPolicy:
    """The same from the three sections of this family."""
    where = find_device(device)
    path = resolve(options.path)
    stored = lora.is_adapter(path)
    if options.base is not None and not stored:
        raise UserError(f"model.base: {options.path!r} is a full model, which needs no base; leave model.base out")
    base = lora.base_of(path, options.base) if stored else path
    model, tokenizer = load_model(
        resolve(base), mask_id=options.mask_id, block=options.block, dtype=_dtype(options, where)
    )
    wrapped = model
    if stored:
        wrapped = lora.load(model, path, trainable=options.adapter.kind == "lora")
        if options.adapter.kind == "lora":
            lora.take_stored_values(wrapped, options)
        else:
            wrapped = lora.merge(wrapped)
    elif options.adapter.kind == "lora":
        wrapped = lora.attach(model, options.adapter, base=options.path)
    if options.adapter.kind == "none":
        wrapped.requires_grad_(True)
    wrapped = wrapped.to(where).eval()
    if options.gradient_checkpointing:
        wrapped.checkpointing = True
    fresh = options.adapter.kind == "lora" and not stored
    return kind(wrapped, tokenizer, options=options, sampling=sampling, inputs=inputs, adapter_at_zero=fresh)


def _dtype(options: Model, device: torch.device) -> torch.dtype:
    """float32 for everything that may train; a base below an adapter, on a GPU under autocast, rests in bfloat16."""
    amp = options.autocast == "bf16" or (options.autocast == "auto" and device.type == "cuda")
    return torch.bfloat16 if amp and device.type == "cuda" and options.adapter.kind == "lora" else torch.float32


def evaluate(policy: ElboPolicy, records: list[Record], config: Config) -> dict[str, float]:
    """Accuracy, reward and tokens per forward of held-out records."""
    from dlm.evaluate import evaluate as run

    return run(policy, records, config)


def export(config: Config, out: Path, wanted: Wanted, record: Record) -> Exported:
    """A folder in the layout of the release, compared with the model as the run evaluates it."""
    from dlm.export import export as run

    return run(config, out, wanted, record)


def builtin(name: str) -> list[Record]:
    """Generated tasks, e.g. sort:train."""
    from dlm.tasks.catalogue import builtin as make

    return make(name)


def chance(records: list[Record], config: Config) -> dict[str, float]:
    """Accuracy of the best constant answer."""
    from dlm.tasks.catalogue import chance as level

    return level(records)
