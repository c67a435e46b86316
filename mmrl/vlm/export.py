"""A trained vision-language model for use without this package: a `save_pretrained` folder or a peft adapter."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch

from mmrl.config import Config
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.exported import NOTE, Exported, Wanted, largest_difference
from mmrl.vlm import loading, merge
from mmrl.vlm.config import Inputs, Model
from mmrl.vlm.embedded_models import resolve
from mmrl.vlm.lora import quiet_peft
from mmrl.vlm.reload import Probe
from mmrl.vlm.usage import usage


def export(config: Config, out: Path, wanted: Wanted, record: Record) -> Exported:
    """Write the model of `config.model.path` into the new folder `out`, with its processor and generation settings.

    All arithmetic is in float32 on the CPU. The logits on `record` are compared with those of the model as the run
    evaluates it, after merging and again in a fresh process. Raises UserError when they differ.
    """
    options = Model.model_validate(config.model.model_dump() | {"attention": "sdpa"})
    inputs = config.inputs if isinstance(config.inputs, Inputs) else Inputs.model_validate(config.inputs or {})
    adapter = loading.is_adapter(resolve(options.path))
    if wanted.adapter_only and not adapter:
        raise UserError("--adapter-only: this run trained the model itself, there is no adapter; leave the option out")
    model, processor, base = _load(options, inputs)
    probe = Probe(model, processor, record, inputs)
    stored = _stored_dtype(base, options)
    if adapter and not wanted.adapter_only:
        model = merge.merged(model)
    size = sum(p.numel() for p in model.parameters() if not wanted.adapter_only or p.requires_grad)
    now = probe.logits(model)
    _same(probe, probe.difference(now), "merging the adapter changed what the model says")
    dtype = getattr(torch, wanted.dtype) if wanted.dtype else torch.float32 if wanted.adapter_only else stored
    _save(model, processor, out, dtype=dtype, wanted=wanted)
    _note(config, inputs, out)
    exact = now if dtype == torch.float32 else probe.logits(model)
    below = base if wanted.adapter_only else None
    architecture = type(model.get_base_model() if wanted.adapter_only else model).__name__
    del model  # the fresh process needs the room
    gc.collect()
    found = largest_difference(exact, probe.reloaded(out, base=below, options=options))
    _same(probe, found, "the exported folder says something else in plain transformers")
    return Exported(
        form="adapter" if wanted.adapter_only else "merged" if adapter else "full",
        dtype=str(dtype).removeprefix("torch."),
        architecture=architecture,
        parameters=size,
        base=loading.adapter_base(options) if adapter else None,
        library="peft" if wanted.adapter_only else "transformers",
        pipeline="image-text-to-text",
        usage=usage(options, inputs, record.prompt, adapter_only=wanted.adapter_only),
        difference=max(found, probe.difference(now)),
        tolerance=probe.tolerance,
        rounding=None if dtype == torch.float32 else probe.difference(exact),
        compared=f"{probe.last} positions of record {record.id!r}",
    )


def _load(options: Model, inputs: Inputs) -> tuple[Any, Any, str]:
    """Model (wrapped, where there is an adapter), processor, and the folder or id of the base model."""
    path = resolve(options.path)
    loading.check_folder(path)
    base = loading.base_of(path, options.base)
    model: Any = loading.load_model(base, options, dtype=torch.float32)
    processor = loading.load_processor(loading.processor_folder(path, base), options, inputs)
    if base != path:
        from peft import PeftModel

        loading.check_adapter_base(path, model)
        with loading.reading(f"the adapter of {path!r}"), quiet_peft():
            model = PeftModel.from_pretrained(model, path, is_trainable=True).eval()
        if options.base is not None:
            model.peft_config["default"].base_model_name_or_path = options.base
    return model, processor, base


def _stored_dtype(path: str, options: Model) -> torch.dtype:
    """The type of the weights in a checkpoint, as its config.json says."""
    from transformers import AutoConfig

    dtype = getattr(AutoConfig.from_pretrained(path, trust_remote_code=options.trust_remote_code), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype or "float32"))  # type: ignore[no-any-return]


def _save(model: Any, processor: Any, out: Path, *, dtype: torch.dtype, wanted: Wanted) -> None:
    """Write the folder in `dtype`; the model is left in float32 with the values that were written."""
    bytes_written = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    if dtype != torch.float32:
        for parameter in model.parameters():
            if parameter.requires_grad or not wanted.adapter_only:
                parameter.data = parameter.data.to(dtype)
    inside = model.get_base_model() if wanted.adapter_only else model
    if not wanted.adapter_only:
        _name_dtype(model.config, dtype)
    with loading.bars(bytes_written), quiet_peft():
        model.save_pretrained(out, **({} if wanted.adapter_only else {"max_shard_size": wanted.max_shard_size}))
    processor.save_pretrained(out)
    if inside.generation_config is not None:
        inside.generation_config.save_pretrained(out)
    merge.cast(model, torch.float32)


def _note(config: Config, inputs: Inputs, out: Path) -> None:
    """What `mmrl generate` needs of the run to ask as it asked."""
    told = {"family": config.family, "inputs": inputs.model_dump(), "max_new_tokens": config.sampling.max_new_tokens}
    (out / NOTE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _name_dtype(config: Any, dtype: torch.dtype) -> None:
    """The configuration and those of its parts name the type that is written."""
    config.dtype = dtype
    for name in getattr(config, "sub_configs", {}):
        if getattr(config, name, None) is not None:
            getattr(config, name).dtype = dtype


def _same(probe: Probe, difference: float, what: str) -> None:
    if not difference <= probe.tolerance:
        raise UserError(
            f"{what}: its logits differ by {difference:.2g} (tolerance {probe.tolerance:.2g}) on record "
            f"{probe.record.id!r}; nothing was exported"
        )
