"""How much memory a run of a masked-image model needs on one rank (`image_gen.memory`). Loads no torch and no weights.

Axes in the counts: L positions of a canvas, K ids that the head answers for, T decoding steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from image_gen import memory
from image_gen.masked.shapes import Network, network_of
from image_gen.memory import ALIVE, Estimate
from mmrl import config_io
from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.training.memory import optimiser_bytes, read_config, rows_per_rank

VARIABLES = 4
#: float32 copies of the logits of positions that a step filled: halves, their mix, log-probabilities and gradients.
TRAINED_COPIES = 6
#: Bytes for each logit while sampling, beside both halves: their mix, log-probabilities, probabilities, float64 sums.
SAMPLED_BYTES = 24
#: Sizes of the schedule network (`schedule.net.Widths`).
EMBED, CHANNELS, FIRST, SECOND, CELLS, WAVES = 512, 128, 1024, 512, 64, 256


@dataclass(frozen=True)
class Shape:
    """A token model. factor: pixels of a picture's side per token of the canvas's. decoder: channels of the VQ model at
    the full size. Parameters are None where they are not known, 0 where there are none (grey levels as tokens)."""

    network: Network
    factor: int
    decoder: int | None
    vae: int | None
    encoders: int | None
    source: str

    @property
    def unit(self) -> int:
        """Sides of a picture are whole multiples of this."""
        return self.factor * self.network.fold


# shapes


def shape_of(path: str, base: str | None = None) -> Shape | None:
    """The shape of a folder in aMUSEd's layout, of the model below a stored LoRA, of an embedded model, or of a model
    named in configs/models/image.yaml; None if unknown."""
    return memory.find(path, base, folder=_from_folder, row=_from_row)


def _from_row(row: Mapping[str, Any]) -> Shape | None:
    network = network_of(row["transformer"])
    if network is None:
        return None
    return Shape(network, row["factor"], row["decoder"], row["vae"], row["encoders"], row["source"])


def _from_folder(folder: Path, name: str) -> Shape | None:
    file, config = memory.transformer_config(folder)
    network = network_of(config)
    if network is None:
        return None
    vq, source = folder / "vqvae" / "config.json", name if name.startswith("embedded:") else str(file)
    if not vq.is_file():
        return Shape(network, 1, None, 0, 0, source)
    stages = read_config(vq).get("block_out_channels") or [64]
    return Shape(
        network,
        factor=2 ** (len(stages) - 1),
        decoder=stages[min(1, len(stages) - 1)],
        vae=memory.stored_parameters(folder / "vqvae"),
        encoders=memory.encoders(folder),
        source=source,
    )


def schedule_parameters(config: Config, features: int) -> int:
    """Trained numbers of the schedule policy. features: channels that its network reads."""
    own = config.model.schedule
    deviations = VARIABLES if own.deviation.learned else 0
    if own.kind == "table":
        return config.sampling.steps * VARIABLES + deviations
    plain = ((WAVES, EMBED), (EMBED, EMBED), (features, EMBED), (9, EMBED), (EMBED, CHANNELS))
    ends = ((CELLS * CHANNELS, FIRST), (FIRST, SECOND), (SECOND, VARIABLES))
    modulations = ((EMBED, 2 * EMBED), (EMBED, 2 * FIRST), (EMBED, 2 * SECOND))
    return sum((inside + 1) * outside for inside, outside in (*plain, *ends, *modulations)) + deviations


# bytes


def estimate(config: Config, recipe: Recipe, shape: Shape, *, ranks: int = 1) -> Estimate:
    """A piece is `piece_rows` images of one decoding step, twice that with guidance. The schedule policy stands with
    the transformer; gradients and optimiser state are those of the channels that the recipe trains."""
    model, sampling = config.model, config.sampling
    lora, width, one = model.adapter.kind == "lora", memory.resting_width(config), shape.network
    targets = None if model.adapter.targets == "default" else model.adapter.targets
    trainable = one.adapter(model.adapter.rank, targets) if lora else one.parameters
    rows = rows_per_rank(config, recipe, ranks)
    guided = 1 if sampling.guidance == 1 and not sampling.explore else 2
    halves = guided - (guided == 2 and model.detach_uncond)
    length = positions(shape, config)
    logits = length * one.answers
    filled = min(1.0, 2 / sampling.steps)
    piece = width * halves * (kept(shape, config) + 2 * logits) + 4 * TRAINED_COPIES * filled * logits
    seen = length / one.fold**2 + one.text
    drawn = guided * width * (ALIVE * one.width * seen + logits) + SAMPLED_BYTES * logits
    found = Estimate(
        **memory.weights(
            config, recipe, parameters=one.parameters, trainable=trainable, vae=shape.vae, encoders=shape.encoders
        ),
        activations=piece * min(model.piece_rows, rows),
        denoising=drawn * min(sampling.batch_rows, rows),
        decoding=memory.decoding_bytes(config, rows, shape.decoder),
        trajectories=rows * (16.0 * length + 8 * VARIABLES * sampling.steps + 12 * _pixels(config)),
    )
    return _with_schedule(found, config, recipe, schedule_parameters(config, one.features))


def _with_schedule(e: Estimate, config: Config, recipe: Recipe, own: int) -> Estimate:
    trained = e.trainable * _trains_tokens(recipe) + own * ("schedule" in recipe.channels)
    return replace(
        e,
        trainable=trained,
        transformer=e.transformer + 4.0 * own,
        gradients=4.0 * trained,
        optimiser=optimiser_bytes(config, trained),
    )


def _trains_tokens(recipe: Recipe) -> bool:
    """All recipes but those of the schedule alone; channels that are not named are stages of the tokens."""
    return set(recipe.channels) != {"schedule"}


def positions(shape: Shape, config: Config) -> int:
    """L, of the canvas."""
    return (config.inputs.height // shape.factor) * (config.inputs.width // shape.factor)


def _pixels(config: Config) -> int:
    return int(config.inputs.height * config.inputs.width)


def kept(shape: Shape, config: Config) -> float:
    """Values that the blocks keep for the backward pass of one image; with checkpointing the input of each and what one
    keeps."""
    one, which = shape.network, 0 if config.model.adapter.kind == "lora" else 1
    seen = positions(shape, config) / one.fold**2
    costs = [b.kept[which] * seen + b.kept_text[which] * one.text for b in one.blocks]
    if not config.model.gradient_checkpointing:
        return sum(b.count * cost for b, cost in zip(one.blocks, costs, strict=True))
    return sum(b.count * b.width * (seen + one.text) for b in one.blocks) + max(costs)


# words


def describe(config: Config, recipe: Recipe, *, ranks: int = 1) -> list[str]:
    """The estimate as text; `size unknown` where the shapes are not known."""
    shape = shape_of(config.model.path, config.model.base)
    if shape is None:
        return memory.unknown(config.model.path)
    own = schedule_parameters(config, shape.network.features)
    return memory.told(
        config,
        recipe,
        estimate(config, recipe, shape, ranks=ranks),
        parameters=shape.network.parameters,
        source=shape.source,
        ranks=ranks,
        step="decoding",
        vae="VQ model" if shape.vae != 0 else None,
        further=f", {own:,} numbers of the schedule ({config.model.schedule.kind})",
    )


def piece_lines(config: Config, *, rows: int) -> list[str]:
    """How an update is cut into pieces. rows: images of one optimiser step and rank."""
    recipe, size = config_io.recipe_of(config), config.model.piece_rows
    cut, steps = -(-rows // size), config.sampling.steps
    trained = config.sampling.train_steps or steps
    images = "1 image" if size == 1 else f"{size} images"
    found = []
    if _trains_tokens(recipe):
        of = "masked canvas" if recipe.experience == "records" else f"of {trained} trained decoding steps of {steps}"
        found.append(
            f"gradients of the model accumulate over pieces of one decoding step of at most {images}: {cut} for each "
            f"{of}, an optimiser step and rank"
        )
    if "schedule" in recipe.channels and recipe.experience != "records":
        how = (
            f"with one forward of the model for each of its {cut * (steps - 1)} pieces"
            if config.model.schedule.kind == "net"
            else "without the model"
        )
        found.append(f"gradients of the schedule: {steps - 1} actions an image (the last step has none), {how}")
    if len(recipe.phases) > 1:
        found.append("turns, one step of training each: " + ", ".join(f"{name} {n}" for name, n in recipe.phases))
    return found
