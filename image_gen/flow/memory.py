"""How much memory a run of an image model needs on one rank. Loads no torch and no weights.

The transformer's parameters are exact, what its blocks keep for the backward pass was counted on diffusers' classes
(`shapes`), the rest is an estimate (`mmrl.training.memory`). Models of rewards are not counted: they are the rewards'.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_gen.flow.shapes import Transformer, transformer_of
from mmrl import yaml_io
from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.errors import UserError
from mmrl.paths import configs_dir
from mmrl.training.memory import (
    average_bytes,
    needs_reference,
    optimiser_bytes,
    read_config,
    rows_per_rank,
    table,
)

#: Values of width W that are alive at once per token of a forward pass without gradient (the feed-forward's inside).
ALIVE = 12
#: Maps of the decoder's last wide stage that are alive at once: input, normed copy, output.
DECODER_MAPS = 3
#: Tokens of the text that the transformer sees at most, by its class.
TEXT_TOKENS = {
    "SD3Transformer2DModel": 77 + 256,
    "FluxTransformer2DModel": 512,
    "SanaTransformer2DModel": 300,
    "QwenImageTransformer2DModel": 512,
}


@dataclass(frozen=True)
class Shape:
    """A pipeline. factor: pixels of a picture's side per element of the latent's. decoder: channels of the VAE at the
    full size. Parameters are None where they are not known, 0 where there are none (pixels as latents)."""

    transformer: Transformer
    factor: int
    decoder: int | None
    vae: int | None
    encoders: int | None
    source: str


# shapes


def shape_of(path: str, base: str | None = None) -> Shape | None:
    """The shape of a pipeline's folder, of the model below a stored LoRA, of an embedded model, or of a model named in
    configs/models/image.yaml; None if unknown."""
    folder = Path(__file__).parents[1] / "embedded" / "weights" / path.removeprefix("embedded:")
    folder = folder if path.startswith("embedded:") else Path(path)
    if (folder / "pytorch_lora_weights.safetensors").is_file() and not (folder / "model_index.json").is_file():
        note = folder / "mmrl.json"
        below = base or (read_config(note).get("base") if note.is_file() else None)
        return None if below is None or below == path else shape_of(str(below))
    if folder.is_dir():
        return _from_folder(folder, path)
    row = yaml_io.read(configs_dir() / "models" / "image.yaml")["models"].get(path)
    if row is None:
        return None
    transformer = transformer_of(row["transformer"])
    assert transformer is not None, path
    return Shape(transformer, row["factor"], row["decoder"], row["vae"], row["encoders"], row["source"])


def _from_folder(folder: Path, name: str) -> Shape | None:
    file = folder / "transformer" / "config.json"
    if not file.is_file():
        raise UserError(f"model.path: {folder} has no transformer/config.json; give the folder of a diffusers pipeline")
    transformer = transformer_of(read_config(file))
    if transformer is None:
        return None
    vae = folder / "vae" / "config.json"
    factor, decoder = _decoder(read_config(vae)) if vae.is_file() else (1, None)
    texts = [stored_parameters(part) for part in sorted(folder.glob("text_encoder*")) if part.is_dir()]
    encoders = sum(n for n in texts if n is not None) if None not in texts else None
    source = name if name.startswith("embedded:") else str(file)
    return Shape(transformer, factor, decoder, stored_parameters(folder / "vae") if decoder else 0, encoders, source)


def _decoder(config: Mapping[str, Any]) -> tuple[int, int | None]:
    """(factor, channels before the last reduction at the full size) of a VAE, from its config.json."""
    kind = config.get("_class_name")
    if kind == "AutoencoderKL":
        stages = config["block_out_channels"]
        return int(2 ** (len(stages) - 1)), stages[min(1, len(stages) - 1)]
    if kind == "AutoencoderDC":
        stages = config["encoder_block_out_channels"]
        return int(2 ** (len(stages) - 1)), stages[min(1, len(stages) - 1)]
    if kind == "AutoencoderKLQwenImage":
        stages = config.get("dim_mult", [1, 2, 4, 4])
        return int(2 ** (len(stages) - 1)), config.get("base_dim", 96) * stages[min(1, len(stages) - 1)]
    return 8, None


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


def estimate(config: Config, recipe: Recipe, shape: Shape, *, ranks: int = 1) -> Estimate:
    """What trains is float32; what only rests is bfloat16 on a GPU, the VAE float32. The reference of an adapter is the
    model with it off; otherwise it is a copy. A piece is `piece_rows` images of one denoising step, twice that with
    guidance that mixes two velocities."""
    model, sampling, size = config.model, config.sampling, config.inputs
    lora = model.adapter.kind == "lora"
    narrow = model.autocast != "off" and config.device != "cpu"
    width = 2.0 if narrow else 4.0
    one = shape.transformer
    targets = None if model.adapter.targets == "default" else model.adapter.targets
    trainable = one.adapter(model.adapter.rank, targets) if lora else one.parameters
    rows = rows_per_rank(config, recipe, ranks)
    halves = 1 if one.embedded_guidance or sampling.guidance == 1 else 2
    latent = one.channels * (size.height // shape.factor) * (size.width // shape.factor)
    picture = size.height * size.width
    decoder = None if shape.decoder is None else float(shape.decoder) * picture * 4 * DECODER_MAPS
    piece = halves - (halves == 2 and model.detach_uncond)
    at_once = min(sampling.batch_rows, rows) * halves
    return Estimate(
        trainable=trainable,
        transformer=one.parameters * (width if lora else 4.0),
        adapter=4.0 * trainable if lora else 0.0,
        vae=None if shape.vae is None else 4.0 * shape.vae,
        encoders=None if shape.encoders is None else width * shape.encoders,
        reference=4.0 * trainable if needs_reference(recipe) and not lora else 0.0,
        gradients=4.0 * trainable,
        optimiser=optimiser_bytes(config, trainable),
        average=average_bytes(config, trainable),
        activations=kept(shape, config) * min(model.piece_rows, rows) * piece * width,
        denoising=ALIVE * one.width * sum(tokens(shape, config)) * at_once * width,
        decoding=None if decoder is None else decoder * min(sampling.decode_rows, rows),
        trajectories=rows * 4.0 * (latent * (sampling.steps + 1) + 3 * picture),
    )


def tokens(shape: Shape, config: Config) -> tuple[int, int]:
    """(of the picture, of the longest text) that the transformer sees for one image."""
    side = shape.factor * shape.transformer.patch
    return (config.inputs.height // side) * (config.inputs.width // side), TEXT_TOKENS[shape.transformer.kind]


def kept(shape: Shape, config: Config) -> float:
    """Values kept for the backward pass of one image; with checkpointing the input of each block and one block's."""
    one, which = shape.transformer, 0 if config.model.adapter.kind == "lora" else 1
    picture, text = tokens(shape, config)
    costs = [(b.count, b.kept[which] * picture + b.kept_text[which] * text) for b in one.blocks if b.count]
    if not config.model.gradient_checkpointing:
        return one.width * sum(count * cost for count, cost in costs)
    boundaries = sum(count for count, _ in costs) * (picture + text)
    return one.width * (boundaries + max(cost for _, cost in costs))


def describe(config: Config, recipe: Recipe, *, ranks: int = 1) -> list[str]:
    """The estimate as text; `size unknown` where the shapes are not known."""
    shape = shape_of(config.model.path, config.model.base)
    if shape is None:
        return [
            f"size unknown: {config.model.path} is neither the folder of a pipeline of a known shape nor in the table "
            "of shipped shapes; save the pipeline to a folder to get an estimate"
        ]
    e = estimate(config, recipe, shape, ranks=ranks)
    rows = min(config.model.piece_rows, rows_per_rank(config, recipe, ranks))
    images = "1 image" if rows == 1 else f"{rows} images"
    parts = [
        ("transformer", e.transformer),
        *([("adapter", e.adapter)] if e.adapter else []),
        *([("VAE, float32", e.vae)] if shape.vae != 0 else []),
        *([("frozen reference", e.reference)] if e.reference else []),
        ("gradients", e.gradients),
        ("optimiser", e.optimiser),
        *([("moving average", e.average)] if config.ema.enabled else []),
        (f"activations of a piece: one denoising step of {images}", e.activations),
        *([(f"decoding of {config.sampling.decode_rows} pictures", e.decoding)] if shape.vae != 0 else []),
        ("text encoders (freed once the prompts are encoded)", e.encoders),
        ("trajectories and pictures of a step, in the CPU's memory", e.trajectories),
    ]
    peaks = [
        ("peak of the update", e.update),
        ("peak of the rollout", e.rollout),
        ("peak while prompts are encoded", e.encoding),
    ]
    head = (
        f"{shape.transformer.parameters / 1e6:,.2f} M parameters of the transformer, {e.trainable / 1e6:,.2f} M trained"
    )
    last = "models of rewards are not counted"
    return [f"{head} (shape: {shape.source})", *table(parts, peaks), last]
