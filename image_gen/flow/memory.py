"""How much memory a run of a flow-matching model needs on one rank (`image_gen.memory`). Loads no torch, no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_gen import memory
from image_gen.flow.shapes import Transformer, transformer_of
from image_gen.memory import ALIVE, Estimate
from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.training.memory import read_config, rows_per_rank

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
    return memory.find(path, base, folder=_from_folder, row=_from_row)


def _from_row(row: Mapping[str, Any]) -> Shape | None:
    transformer = transformer_of(row["transformer"])
    if transformer is None:
        return None
    return Shape(transformer, row["factor"], row["decoder"], row["vae"], row["encoders"], row["source"])


def _from_folder(folder: Path, name: str) -> Shape | None:
    file, config = memory.transformer_config(folder)
    transformer = transformer_of(config)
    if transformer is None:
        return None
    vae = folder / "vae" / "config.json"
    factor, decoder = _decoder(read_config(vae)) if vae.is_file() else (1, None)
    source = name if name.startswith("embedded:") else str(file)
    stored = memory.stored_parameters(folder / "vae") if decoder else 0
    return Shape(transformer, factor, decoder, stored, memory.encoders(folder), source)


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


# bytes


def estimate(config: Config, recipe: Recipe, shape: Shape, *, ranks: int = 1) -> Estimate:
    """A piece is `piece_rows` images of one denoising step, twice that with guidance that mixes two velocities."""
    model, sampling, size = config.model, config.sampling, config.inputs
    lora, width, one = model.adapter.kind == "lora", memory.resting_width(config), shape.transformer
    targets = None if model.adapter.targets == "default" else model.adapter.targets
    trainable = one.adapter(model.adapter.rank, targets) if lora else one.parameters
    rows = rows_per_rank(config, recipe, ranks)
    halves = 1 if one.embedded_guidance or sampling.guidance == 1 else 2
    latent = one.channels * (size.height // shape.factor) * (size.width // shape.factor)
    piece = halves - (halves == 2 and model.detach_uncond)
    at_once = min(sampling.batch_rows, rows) * halves
    return Estimate(
        **memory.weights(
            config, recipe, parameters=one.parameters, trainable=trainable, vae=shape.vae, encoders=shape.encoders
        ),
        activations=kept(shape, config) * min(model.piece_rows, rows) * piece * width,
        denoising=ALIVE * one.width * sum(tokens(shape, config)) * at_once * width,
        decoding=memory.decoding_bytes(config, rows, shape.decoder),
        trajectories=rows * 4.0 * (latent * (sampling.steps + 1) + 3 * size.height * size.width),
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
        return memory.unknown(config.model.path)
    return memory.told(
        config,
        recipe,
        estimate(config, recipe, shape, ranks=ranks),
        parameters=shape.transformer.parameters,
        source=shape.source,
        ranks=ranks,
        step="denoising",
        vae="VAE" if shape.vae != 0 else None,
    )
