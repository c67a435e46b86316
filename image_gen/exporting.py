"""A trained image model for use without this package: what both families do to write a folder and to compare it.

All arithmetic is in float32 on the CPU. What a `Probe` measures of the model as the run evaluates it is compared with
the model after fusing the adapter, and with the written folder in a fresh process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from image_gen.pipelines import lora
from image_gen.pipelines.base import PictureModel
from image_gen.pipelines.components import ComponentsModel
from image_gen.reloading import Apart, Measured, Probe
from image_gen.stored import Load, Options, base_of, is_lora, write_note
from mmrl.errors import UserError
from mmrl.training.exported import Compared, Exported, Form, Wanted, Words, looks_local

M = TypeVar("M", bound=PictureModel)
CPU = torch.device("cpu")
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Written:
    """A folder that was written and not yet read again.

    exact   what the model gives with the values that were written.
    moved   how far fusing the adapter moved it.
    below   the folder of an adapter's base model; None for whole weights.
    task    what the fresh process is told.
    """

    form: Form
    base: str | None
    dtype: torch.dtype
    architecture: str
    parameters: int
    exact: Measured
    moved: Apart
    below: Path | None
    task: dict[str, Any]


def base_below(options: Options, wanted: Wanted) -> str | None:
    """What a stored LoRA was trained on; None for a whole model. Raises UserError for options that do not fit it."""
    if not is_lora(options.path):
        if wanted.adapter_only:
            raise UserError(
                "--adapter-only: this run trained the model itself, there is no adapter; leave the option out"
            )
        if options.base is not None:
            raise UserError(f"model.base: {options.path!r} is a whole model, which needs no base; leave --base out")
        return None
    base = base_of(options)
    if looks_local(base) and not Path(base).expanduser().exists():
        raise UserError(f"the LoRA {options.path!r} was trained on {base!r}, which is not there; say where with --base")
    return base


def opened(options: Options, base: str | None, load: Load[M]) -> M:
    """The model in float32 on the CPU, a stored adapter beside its weights."""
    model = load(base or options.path, dtype=torch.float32, device=CPU)
    if base is not None:
        model.load_lora(Path(options.path))
    model.transformer.eval()
    return model


def source_of(model: PictureModel, path: str, *, embedded: Path) -> Path:
    """Where the model of `path` lies on this machine: a download and an embedded model have places of their own.
    embedded: the folder of the latter."""
    if isinstance(model, ComponentsModel):
        return model.source
    return embedded if path.startswith("embedded:") else Path(path)


def write(
    model: M, probe: Probe[M], out: Path, wanted: Wanted, *, family: str, base: str | None, source: Path
) -> Written:
    """The adapter alone, or all weights with the adapter fused, into the folder `out`.

    base: of a stored adapter. source: the folder that the weights below it were read from. Raises UserError when fusing
    changes what the model gives.
    """
    stored = stored_dtype(source)
    if base is not None and not wanted.adapter_only:
        lora.merge(model)
    now = probe.measure(model)
    moved = probe.same(probe.expected, now, "fusing the adapter changed what the model draws")
    dtype = getattr(torch, wanted.dtype) if wanted.dtype else torch.float32 if wanted.adapter_only else stored
    size = _save(model, out, dtype=dtype, wanted=wanted, family=family, base=base)
    return Written(
        form="adapter" if wanted.adapter_only else "full" if base is None else "merged",
        base=base,
        dtype=dtype,
        architecture=type(model.transformer).__name__,
        parameters=size,
        exact=now if dtype == torch.float32 else probe.measure(model),
        moved=moved,
        below=source if wanted.adapter_only else None,
        task=probe.task(model),
    )


def compare(
    written: Written, probe: Probe[M], out: Path, *, compared: str, words: Words, library: str, said: dict[str, Any]
) -> Exported:
    """Read the folder again in a fresh process. Nothing but `probe` need be left of the model: that process wants the
    room. `said`: usage, notes and settings for the card. Raises UserError when it gives something else."""
    again = probe.reloaded(out, base=written.below, task=written.task)
    wrong = f"the exported folder draws something else in {'mmrl' if library == 'mmrl' else f'plain {library}'}"
    found = probe.same(written.exact, again, wrong).and_also(written.moved)
    dtype = written.dtype
    return Exported(
        form=written.form,
        dtype=str(dtype).removeprefix("torch."),
        architecture=written.architecture,
        parameters=written.parameters,
        base=written.base,
        library=library,
        pipeline="text-to-image",
        difference=found.outputs,
        tolerance=probe.tolerance,
        rounding=None if dtype == torch.float32 else probe.expected.apart(written.exact).outputs,
        compared=compared,
        further=tuple(
            Compared(f"{name} ({probe.further[name].unit})", value, probe.further[name].tolerance)
            for name, value in found.further.items()
        ),
        words=words,
        **said,
    )


def stored_dtype(folder: Path) -> torch.dtype:
    """The type of the transformer's weights on disk."""
    from safetensors import safe_open

    inner = folder / "transformer"
    for file in sorted((inner if inner.is_dir() else folder).glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as read:
            for name in read.keys():  # noqa: SIM118  (no mapping)
                return _STORED.get(read.get_slice(name).get_dtype(), torch.float32)
    return torch.float32


def _save(model: PictureModel, out: Path, *, dtype: torch.dtype, wanted: Wanted, family: str, base: str | None) -> int:
    """Write the folder, what was trained in `dtype`; the model is left in float32 with the values that were written.
    Returns the numbers written of the transformer."""
    written = [p for n, p in model.transformer.named_parameters() if not wanted.adapter_only or ".lora_" in n]
    if dtype != torch.float32:
        for parameter in written:
            parameter.data = parameter.data.to(dtype)
    if wanted.adapter_only:
        model.save_lora(out)
        write_note(out, family=family, base=base)
    else:
        model.save(out, max_shard_size=wanted.max_shard_size)
    for parameter in written:
        parameter.data = parameter.data.float()
    return sum(p.numel() for p in written)
