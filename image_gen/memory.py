"""How much memory a run of an image model needs on one rank: what both families share. Loads no torch and no weights.

Parameters of transformers are exact, what their blocks keep for the backward pass was counted on diffusers' classes
(see the tests), the rest is an estimate (`mmrl.training.memory`). Models of rewards are not counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmrl import yaml_io
from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.errors import UserError
from mmrl.paths import configs_dir
from mmrl.training.memory import average_bytes, needs_reference, optimiser_bytes, read_config, rows_per_rank, table

S = TypeVar("S")
#: Values of width W that are alive at once per token of a forward pass without gradient (the feed-forward's inside).
ALIVE = 12
#: Maps of the decoder's last wide stage that are alive at once: input, normed copy, output.
DECODER_MAPS = 3
EMBEDDED = Path(__file__).parent / "embedded" / "weights"


# shapes


def find(
    path: str,
    base: str | None,
    *,
    folder: Callable[[Path, str], S | None],
    row: Callable[[Mapping[str, Any]], S | None],
) -> S | None:
    """The shape of a model's folder, of the model below a stored LoRA, of an embedded model, or of a model named in
    configs/models/image.yaml; None if unknown. `folder` and `row` read what is found."""
    place = EMBEDDED / path.removeprefix("embedded:") if path.startswith("embedded:") else Path(path)
    if (place / "pytorch_lora_weights.safetensors").is_file() and not (place / "model_index.json").is_file():
        note = place / "mmrl.json"
        below = base or (read_config(note).get("base") if note.is_file() else None)
        return None if below is None or below == path else find(str(below), None, folder=folder, row=row)
    if place.is_dir():
        return folder(place, path)
    found = yaml_io.read(configs_dir() / "models" / "image.yaml")["models"].get(path)
    return None if found is None else row(found)


def transformer_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """(its file, the configuration of the transformer) of a pipeline's folder."""
    file = folder / "transformer" / "config.json"
    if not file.is_file():
        raise UserError(f"model.path: {folder} has no transformer/config.json; give the folder of a diffusers pipeline")
    return file, read_config(file)


def encoders(folder: Path) -> int | None:
    """Parameters of all text encoders of a folder; None where some are not known."""
    found = [stored_parameters(part) for part in sorted(folder.glob("text_encoder*")) if part.is_dir()]
    return sum(n for n in found if n is not None) if None not in found else None


def stored_parameters(folder: Path) -> int | None:
    """Numbers in the safetensors files of a folder, read from their headers; None where there are none."""
    total, files = 0, sorted(folder.glob("*.safetensors"))
    for file in files:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            try:
                header = json.loads(opened.read(min(size, 1 << 27)))
            except ValueError:
                raise UserError(f"{file}: not a whole safetensors file; copy the model again") from None
        total += sum(math.prod(v["shape"]) for k, v in header.items() if k != "__metadata__")
    return total if files else None


def whole_steps(config: Config, unit: int) -> None:
    """Raises UserError for a picture size that is no multiple of `unit` pixels, naming the nearest."""
    for name in ("height", "width"):
        side = getattr(config.inputs, name)
        if side % unit:
            near = " or ".join(str(n) for n in (side // unit * unit, side // unit * unit + unit) if n)
            raise UserError(
                f"inputs.{name}: {config.model.path} takes steps of {unit} pixels, got {side}; nearest: {near}"
            )


# bytes


@dataclass(frozen=True)
class Estimate:
    """Bytes on one rank; None where the size is not known. `trainable` is a count."""

    trainable: int
    transformer: float
    adapter: float
    vae: float | None
    encoders: float | None
    reference: float
    gradients: float
    optimiser: float
    average: float
    activations: float
    denoising: float
    decoding: float | None
    trajectories: float  # in the memory of the CPU

    @property
    def update(self) -> float:
        """Peak while updating; the VAE stays beside the transformer."""
        kept = self.transformer + self.adapter + (self.vae or 0) + self.reference
        return kept + self.gradients + self.optimiser + self.average + self.activations

    @property
    def rollout(self) -> float:
        kept = self.transformer + self.adapter + (self.vae or 0) + self.reference + self.optimiser + self.average
        return kept + max(self.denoising, self.decoding or 0)

    @property
    def encoding(self) -> float | None:
        """While the prompts are encoded, before the first step; the encoders are freed then."""
        if self.encoders is None:
            return None
        return self.transformer + self.adapter + (self.vae or 0) + self.encoders


def resting_width(config: Config) -> float:
    """Bytes of a number that only rests or passes through: bfloat16 on a GPU, unless autocast is off."""
    return 2.0 if config.model.autocast != "off" and config.device != "cpu" else 4.0


def weights(
    config: Config, recipe: Recipe, *, parameters: int, trainable: int, vae: int | None, encoders: int | None
) -> dict[str, Any]:
    """The fields of an estimate that are weights. What trains is float32; the VAE too. The reference of an adapter is
    the model with it off; otherwise it is a copy."""
    lora, width = config.model.adapter.kind == "lora", resting_width(config)
    return {
        "trainable": trainable,
        "transformer": parameters * (width if lora else 4.0),
        "adapter": 4.0 * trainable if lora else 0.0,
        "vae": None if vae is None else 4.0 * vae,
        "encoders": None if encoders is None else width * encoders,
        "reference": 4.0 * trainable if needs_reference(recipe) and not lora else 0.0,
        "gradients": 4.0 * trainable,
        "optimiser": optimiser_bytes(config, trainable),
        "average": average_bytes(config, trainable),
    }


def decoding_bytes(config: Config, rows: int, channels: int | None) -> float | None:
    """Of the decoder's widest maps, float32; `channels`: at the full size, None without a decoder."""
    if channels is None:
        return None
    picture = config.inputs.height * config.inputs.width
    return float(channels) * picture * 4 * DECODER_MAPS * min(config.sampling.decode_rows, rows)


def told(
    config: Config,
    recipe: Recipe,
    e: Estimate,
    *,
    parameters: int,
    source: str,
    ranks: int,
    step: str,
    vae: str | None,
    further: str = "",
) -> list[str]:
    """The estimate as text. step: what a piece is one of. vae: the name of the decoder; None without one."""
    rows = min(config.model.piece_rows, rows_per_rank(config, recipe, ranks))
    images = "1 image" if rows == 1 else f"{rows} images"
    parts = [
        ("transformer", e.transformer),
        *([("adapter", e.adapter)] if e.adapter else []),
        *([(f"{vae}, float32", e.vae)] if vae else []),
        *([("frozen reference", e.reference)] if e.reference else []),
        ("gradients", e.gradients),
        ("optimiser", e.optimiser),
        *([("moving average", e.average)] if config.ema.enabled else []),
        (f"activations of a piece: one {step} step of {images}", e.activations),
        *([(f"decoding of {config.sampling.decode_rows} pictures", e.decoding)] if vae else []),
        ("text encoders (freed once the prompts are encoded)", e.encoders),
        ("trajectories and pictures of a step, in the CPU's memory", e.trajectories),
    ]
    peaks = [
        ("peak of the update", e.update),
        ("peak of the rollout", e.rollout),
        ("peak while prompts are encoded", e.encoding),
    ]
    head = f"{parameters / 1e6:,.2f} M parameters of the transformer, {e.trainable / 1e6:,.2f} M trained{further}"
    return [f"{head} (shape: {source})", *table(parts, peaks), "models of rewards are not counted"]


def unknown(path: str) -> list[str]:
    return [
        f"size unknown: {path} is neither the folder of a pipeline of a known shape nor in the table of shipped "
        "shapes; save the pipeline to a folder to get an estimate"
    ]
