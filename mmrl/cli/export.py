"""`mmrl export RUN --out DIR`: a folder that plain transformers, peft or diffusers load, compared with the model."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

import typer

from mmrl.errors import UserError


class Dtype(StrEnum):
    """What weights are written in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def export(
    run: Path = typer.Argument(..., help="Run folder (its best step) or step folder."),
    out: Path = typer.Option(..., "--out", help="New folder for the model."),
    adapter_only: bool = typer.Option(
        False, "--adapter-only", help="The LoRA adapter in its library's format instead of the merged model."
    ),
    step: int | None = typer.Option(None, "--step", min=0, help="This step of the run instead of its best."),
    dtype: Dtype | None = typer.Option(
        None, "--dtype", help="Type of the weights; default that of the base model (an adapter alone: float32)."
    ),
    max_shard_size: str = typer.Option("5GB", "--max-shard-size", help="Split the weights into files of this size."),
    config: str | None = typer.Option(None, "--config", help="Configuration; default the run's own."),
    base: str | None = typer.Option(None, "--base", help="Base model of an adapter, where it is not found."),
) -> None:
    """Write a trained model for use without mmrl, reload it in a fresh process and compare."""
    from mmrl.cli.checkpoints import require_checkpoint

    folder = require_checkpoint(run)
    if not re.fullmatch(r"[1-9]\d*[KMG]B", max_shard_size):
        raise UserError(f"--max-shard-size {max_shard_size!r}: write it as a number and KB, MB or GB, e.g. 5GB")
    from mmrl.training.export import Options, export_run
    from mmrl.training.exported import Wanted, is_hub_id

    wanted = Wanted(adapter_only=adapter_only, dtype=dtype and dtype.value, max_shard_size=max_shard_size)
    done = export_run(folder, out, wanted, Options(step=step, config=config, base=base), tell=typer.echo)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    what = {"full": "the trained model", "merged": "the base model with its adapter merged", "adapter": "the adapter"}
    typer.echo(f"{what[done.form]}: {done.parameters:,} parameters, {done.dtype}, {_size(size)}")
    by = done.library if done.library == "mmrl" else f"plain {done.library}"
    typer.echo(
        f"loaded again by {by} in a fresh process and compared on {done.compared}:\n"
        f"  largest difference of the {done.words.outputs} {done.difference:.1e}, tolerance {done.tolerance:.1e}"
    )
    for one in done.further:
        typer.echo(f"  of the {one.what} {one.difference:.1e}, tolerance {one.tolerance:.1e}")
    if done.rounding is not None:
        typer.echo(f"  rounding to {done.dtype} alone moves them by up to {done.rounding:.1e}")
    if done.form == "adapter" and done.base and not is_hub_id(done.base) and not done.base.startswith("embedded:"):
        typer.echo(
            f"{done.words.names_base} names its base model as {done.base}: change that before you share the folder"
        )
    typer.echo(f"wrote {out} (README.md says how to load it)")


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
