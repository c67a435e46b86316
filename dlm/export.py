"""A trained masked diffusion language model as a folder in the layout of its release, or its adapter alone."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch

from dlm.config import Inputs, Model, Sampling
from dlm.embedded import resolve
from dlm.encode import Encoder
from dlm.models import lora
from dlm.models.layers import Transformer
from dlm.models.loading import load_model, local_folder, save_model, stored_tensors
from dlm.policy import write_note
from dlm.reload import Probe
from mmrl import config_io
from mmrl.config import Config
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.exported import Exported, Wanted, Words, largest_difference, public_name

WORDS = Words(results="Answers to the held-out records at temperature 0", units="filled positions")
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def export(config: Config, out: Path, wanted: Wanted, record: Record) -> Exported:
    """Write the model of `config.model.path` into the new folder `out`: tensor names, config.json and code files of the
    release, with tokenizer, mask token and block size; or, of a run with an adapter, the adapter alone.

    All arithmetic is in float32 on the CPU. The logits of a masked canvas behind the prompt of `record` are compared
    with those of the model as the run evaluates it, after merging and again in a fresh process. Raises UserError when
    they differ.
    """
    options, inputs = _sections(config)
    path = resolve(options.path)
    adapter = lora.is_adapter(path)
    if wanted.adapter_only and not adapter:
        raise UserError("--adapter-only: this run trained the model itself, there is no adapter; leave the option out")
    base = lora.base_of(path, options.base)
    model, tokenizer = load_model(base, mask_id=options.mask_id, block=options.block)
    if adapter:
        model = lora.load(model, path, base=options.base)
    traits = model.traits
    encoder = Encoder(tokenizer, traits, inputs, ends=traits.eos_ids)
    probe = Probe(model, encoder.text(record), encoder.prompt(record, None, 1), special=not encoder.chats)
    if adapter and not wanted.adapter_only:
        model = lora.merge(model)
    now = probe.logits(model)
    _same(record, probe.difference(now), probe.tolerance, "merging the adapter changed what the model says")
    kept = torch.float32 if wanted.adapter_only else stored_dtype(base)
    dtype = getattr(torch, wanted.dtype) if wanted.dtype else kept
    size = _save(model, tokenizer, out, dtype=dtype, wanted=wanted)
    exact = now if dtype == torch.float32 else probe.logits(model)
    architecture = ((model.release.config if model.release else {}).get("architectures") or [traits.name])[0]
    del model  # the fresh process needs the room
    gc.collect()
    again = probe.reloaded(out, base=base if wanted.adapter_only else None, mask_id=traits.mask_id, block=traits.block)
    found = largest_difference(exact, again)
    _same(record, found, probe.tolerance, "the exported folder says something else")
    named = lora.adapter_config(path)["base_model_name_or_path"] if adapter and options.base is None else options.base
    return Exported(
        form="adapter" if wanted.adapter_only else "merged" if adapter else "full",
        dtype=str(dtype).removeprefix("torch."),
        architecture=str(architecture),
        parameters=size,
        base=named if adapter else None,
        library="mmrl",
        pipeline="text-generation",
        usage=usage(record.prompt, base=named if wanted.adapter_only else None),
        difference=max(found, probe.difference(now)),
        tolerance=probe.tolerance,
        rounding=None if dtype == torch.float32 else probe.difference(exact),
        compared=f"{len(probe.expected)} masked positions behind the prompt of record {record.id!r}",
        notes=_notes(config, adapter_only=wanted.adapter_only),
        words=WORDS,
    )


def _sections(config: Config) -> tuple[Model, Inputs]:
    """The sections of the family, also of a configuration that was made in Python."""
    model, inputs = config.model, config.inputs or {}
    return (
        model if isinstance(model, Model) else Model.model_validate(model),
        inputs if isinstance(inputs, Inputs) else Inputs.model_validate(inputs),
    )


def stored_dtype(path: str) -> torch.dtype:
    """The type of the weights on disk: LLaDA's config.json does not tell."""
    from safetensors import safe_open

    for name, file in stored_tensors(local_folder(path)).items():
        with safe_open(str(file), framework="pt") as opened:
            return _STORED.get(opened.get_slice(name).get_dtype(), torch.float32)
    return torch.float32


def _save(model: Transformer, tokenizer: Any, out: Path, *, dtype: torch.dtype, wanted: Wanted) -> int:
    """Write the folder in `dtype`; returns the numbers written. The model is left in float32 with the values written.

    config.json gets what a run may have had to say itself: the mask token and the block size.
    """
    written = [p for n, p in model.named_parameters() if not wanted.adapter_only or ".lora_" in n]
    for parameter in written:
        parameter.data = parameter.data.to(dtype)
    if wanted.adapter_only:
        lora.save(model, out)
        tokenizer.save_pretrained(out)
    else:
        number, unit = int(wanted.max_shard_size[:-2]), wanted.max_shard_size[-2:]
        save_model(model, tokenizer, out, dtype=dtype, shard=number * _UNITS[unit])
        file = out / "config.json"
        told = json.loads(file.read_text(encoding="utf-8")) | {"mask_token_id": model.traits.mask_id}
        if model.traits.block is not None:
            told["block_size"] = model.traits.block
        file.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_note(out)
    for parameter in written:
        parameter.data = parameter.data.float()
    return sum(p.numel() for p in written)


def _same(record: Record, difference: float, tolerance: float, what: str) -> None:
    if not difference <= tolerance:
        raise UserError(
            f"{what}: its logits differ by {difference:.2g} (tolerance {tolerance:.2g}) on record {record.id!r}; "
            "nothing was exported"
        )


def _notes(config: Config, *, adapter_only: bool) -> tuple[str, ...]:
    sampling = Sampling.model_validate(config_io.plain(config)["sampling"] or {}).model_dump()
    names = ("max_new_tokens", "block", "order", "rule", sampling["rule"], "cache")  # a rule's number has its name
    told = ", ".join(f"{n} {sampling[n]}" for n in names if sampling.get(n) is not None)
    names_of = "Names in it are those of the released modules" if adapter_only else "Tensor names are the release's"
    return (
        f"It was decoded with {told}.",
        f"{names_of}; it was compared in mmrl's own model, not in the release's code.",
    )


def usage(prompt: Any, *, base: str | None) -> str:
    """Code for the model card that answers the question of a held-out record. Texts are Python literals on one line."""
    question = prompt if isinstance(prompt, str) and "`" not in prompt else "What is 12 + 30?"
    more = "" if base is None else f", base={ascii(public_name(base))}"
    return "\n".join(
        [
            "from pathlib import Path",
            "",
            "from dlm.generate import generate",
            "",
            'folder = Path(".")  # this folder',
            f'generate(folder, prompt={ascii(question)}{more}, out=Path("generated"))',
        ]
    )
