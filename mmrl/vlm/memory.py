"""How much memory a run of a Qwen-VL model needs on one rank, from shapes alone. Loads no weights.

Importing this loads no torch. Asking which rows a recipe keeps together does, for its stages are tensor functions; the
checks of a dry run have loaded them by then. The parameter count is exact for the Qwen-VL shapes up to norms and small
biases (under 0.1 %). The rest is an estimate (`mmrl.training.memory`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl import yaml_io
from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.errors import UserError
from mmrl.paths import configs_dir
from mmrl.training.memory import (
    Part,
    average_bytes,
    needs_reference,
    optimiser_bytes,
    read_config,
    rows_per_rank,
    table,
)
from mmrl.training.model_folder import base_of
from mmrl.vlm.embedded_models import resolve

#: Logits that the output layer makes at once on a GPU (`mmrl.core.head_blocks.ELSEWHERE`, which loads torch).
HEAD_BLOCK = 1 << 25
#: Values of width `hidden` that one decoder layer keeps per token for its backward pass (norms, q, k, v, attention
#: output, residuals); the gated MLP adds three values of width `intermediate`.
KEPT_PER_LAYER = 10
KEPT_PER_MLP = 3


@dataclass(frozen=True)
class Shape:
    """The numbers of a model's config.json that memory depends on."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    vision_depth: int
    vision_hidden: int
    vision_intermediate: int
    vision_gated: bool
    vision_patch: int
    vision_merge: int
    vision_out: int
    deepstack: int
    source: str

    @property
    def language_layer(self) -> int:
        """Parameters of one decoder layer."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def embeddings(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def vision(self) -> int:
        """Parameters of the vision tower and its projectors."""
        wide = self.vision_hidden * self.vision_merge**2
        block = (
            4 * self.vision_hidden**2 + (3 if self.vision_gated else 2) * self.vision_hidden * self.vision_intermediate
        )
        merger = wide * wide + wide * self.vision_out
        patch = 3 * 2 * self.vision_patch**2 * self.vision_hidden
        return self.vision_depth * block + merger * (1 + self.deepstack) + patch

    @property
    def language(self) -> int:
        return self.layers * self.language_layer + self.embeddings

    @property
    def parameters(self) -> int:
        return self.language + self.vision


def shape_of(path: str, base: str | None = None) -> Shape | None:
    """The shape of a model folder (its config.json; of an adapter that of its base), or of a model named in
    configs/models/qwen_vl.yaml; None if unknown."""
    path = base_of(resolve(path), base, resolve=resolve)
    folder = Path(path)
    if folder.is_dir():
        file = folder / "config.json"
        if not file.is_file():
            raise UserError(f"model.path: {folder} has no config.json; give a folder written by save_pretrained")
        return shape_from_json(read_config(file), source=str(file))
    row = yaml_io.read(configs_dir() / "models" / "qwen_vl.yaml")["models"].get(path)
    if row is None:
        return None
    return Shape(**{k: v for k, v in row.items() if k != "source"}, source=row["source"])


def shape_from_json(config: Mapping[str, Any], *, source: str) -> Shape | None:
    """From config.json of the Qwen-VL families; None for an architecture whose shape this does not know."""
    text = config.get("text_config") or config
    vision = config.get("vision_config") or {}
    if (
        not {"hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"} <= set(text)
        or "depth" not in vision
    ):
        return None
    heads = text["num_attention_heads"]
    old = config.get("model_type") == "qwen2_vl"  # its vision config says embed_dim, and hidden_size for the output
    width = vision.get("embed_dim", vision["hidden_size"]) if old else vision["hidden_size"]
    return Shape(
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads", heads),
        head_dim=text.get("head_dim") or text["hidden_size"] // heads,
        intermediate=text["intermediate_size"],
        vocab=text["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        vision_depth=vision["depth"],
        vision_hidden=width,
        vision_intermediate=vision.get("intermediate_size", int(width * vision.get("mlp_ratio", 4))),
        vision_gated=config.get("model_type") == "qwen2_5_vl",
        vision_patch=vision.get("patch_size", 14),
        vision_merge=vision.get("spatial_merge_size", 2),
        vision_out=vision.get("out_hidden_size", text["hidden_size"]),
        deepstack=len(vision.get("deepstack_visual_indexes") or []),
        source=source,
    )


@dataclass(frozen=True)
class Together:
    """The largest piece of an update: its tokens, and the `scope` that no piece is cut below (`mmrl.core.registry`)."""

    tokens: int
    scope: str


@dataclass(frozen=True)
class Estimate:
    """Bytes on one rank. `trainable` and `parameters` are counts, `piece` is the largest piece of the update."""

    piece: Together
    parameters: int
    trainable: int
    weights: float
    whole: float  # weights while sampling
    reference: float
    gradients: float
    optimiser: float
    average: float
    activations: float
    cache: float

    @property
    def update(self) -> float:
        """Peak while updating."""
        return self.weights + self.reference + self.gradients + self.optimiser + self.average + self.activations

    @property
    def rollout(self) -> float:
        """Peak while sampling; gradients are freed, the optimiser's state stays."""
        return self.whole + self.reference + self.optimiser + self.average + self.cache


def largest_piece(config: Config, recipe: Recipe, *, prompt: int, ranks: int = 1) -> Together:
    """Tokens of the largest piece: model.piece_tokens, or whole groups at full length where stages of the recipe (its
    token weights, its gate, plug-ins among them) compare their rows: no budget cuts those (`mmrl.vlm.batching`).

    prompt: tokens of one. A row costs its prompt and its completion; packed rows have the prompt once.
    """
    from mmrl.training.setup import kept_whole
    from mmrl.vlm.policy import form_in_shards, shared_prefix_form

    scope = kept_whole(config)
    budget, new = int(config.model.piece_tokens), int(config.sampling.max_new_tokens)
    if scope == "row":
        return Together(budget, scope)
    form = form_in_shards if config.distributed.mode == "fsdp2" else shared_prefix_form
    rows = 1 if recipe.experience == "records" else config.train.group
    one = prompt + rows * new if form(config.model) == "packed" else rows * (prompt + new)
    minibatches = config.train.minibatches or recipe.minibatches
    groups = 1 if scope == "group" else -(-config.train.prompts // (ranks * minibatches))
    return Together(max(budget, groups * one), scope)


def estimate(config: Config, recipe: Recipe, shape: Shape, *, ranks: int = 1, prompt: int | None = None) -> Estimate:
    """The parts of the memory of one rank. prompt: tokens of the longest; default inputs.max_prompt_tokens.

    What trains is float32, and so is a frozen part of a fully trained model; the base below an adapter rests in bf16
    on a GPU. The reference of a run
    without an adapter is a copy of what trains. Activations and cache are bf16 under autocast. In shards (fsdp2) each
    rank keeps its part of weights, gradients and optimiser state, and all weights while it samples.
    """
    adapter = config.model.adapter.kind != "none"
    narrow = config.model.autocast != "off" and config.device != "cpu"
    width = 2 if narrow else 4
    trainable = trainable_count(config, shape)
    frozen = shape.parameters if adapter else shape.parameters - trainable
    weights = 4.0 * trainable + (2 if narrow and adapter else 4) * frozen
    copy = needs_reference(recipe) and not adapter
    parts = ranks if config.distributed.mode == "fsdp2" else 1
    limit = config.inputs.max_prompt_tokens
    piece = largest_piece(config, recipe, prompt=limit if prompt is None else prompt, ranks=ranks)
    tokens = piece.tokens
    per_layer = KEPT_PER_LAYER * shape.hidden + KEPT_PER_MLP * shape.intermediate
    layers = 1 if config.model.gradient_checkpointing else shape.layers
    boundary = shape.layers * shape.hidden * tokens * width if config.model.gradient_checkpointing else 0
    head = min(min(config.model.head_chunk, tokens) * shape.vocab, HEAD_BLOCK) * 4 * 2  # and its gradient, float32
    rows = min(config.sampling.batch_rows, rows_per_rank(config, recipe, ranks))
    length = limit + config.sampling.max_new_tokens
    return Estimate(
        piece=piece,
        parameters=shape.parameters,
        trainable=trainable,
        weights=weights / parts,
        whole=weights,
        reference=(4.0 * trainable if copy else 0.0) / parts,
        gradients=4.0 * trainable / parts,
        optimiser=optimiser_bytes(config, trainable) / parts,
        average=average_bytes(config, trainable) / parts,
        activations=float(layers * per_layer * tokens * width + boundary + head),
        cache=2.0 * shape.layers * shape.kv_heads * shape.head_dim * rows * length * width,
    )


def trainable_count(config: Config, shape: Shape) -> int:
    """How many parameters the run updates."""
    adapter = config.model.adapter
    if adapter.kind == "lora":
        width_in, kv = shape.hidden, shape.kv_heads * shape.head_dim
        q = shape.heads * shape.head_dim
        per_layer = 2 * (width_in + q) + 2 * (width_in + kv) + 3 * (shape.hidden + shape.intermediate)
        return int(adapter.rank * shape.layers * per_layer)
    frozen = set(config.model.freeze)
    total = shape.parameters
    total -= shape.vision if "vision" in frozen else 0
    total -= shape.layers * shape.language_layer if "language" in frozen else 0
    total -= shape.embeddings if "embeddings" in frozen else 0
    return max(total, 0)


def describe(config: Config, recipe: Recipe, *, ranks: int = 1) -> list[str]:
    """The estimate as text; `size unknown` where the shapes are not known."""
    shape = shape_of(config.model.path, config.model.base)
    if shape is None:
        return [unknown(config)]
    return lines(config, estimate(config, recipe, shape, ranks=ranks), shape)


def unknown(config: Config) -> str:
    return (
        f"size unknown: {config.model.path} is neither a folder with a config.json of a known shape nor in the "
        "table of shipped shapes; save the model to a folder to get an estimate"
    )


def lines(
    config: Config,
    e: Estimate,
    shape: Shape,
    *,
    further: Sequence[Part] = (),
    update: float = 0.0,
    rollout: float = 0.0,
) -> list[str]:
    """The estimate as text. `further` parts of a family stand behind the others, `update` and `rollout` are what they
    add to the peaks. A last line says it where a piece is larger than model.piece_tokens."""
    parts = [
        ("weights", e.weights),
        ("frozen reference", e.reference),
        ("gradients", e.gradients),
        ("optimiser", e.optimiser),
        *([("moving average", e.average)] if config.ema.enabled else []),
        (f"activations of a piece of {e.piece.tokens} tokens", e.activations),
        ("key-value cache of the rollout, every row at full length", e.cache),
        *further,
    ]
    head = f"{e.parameters / 1e6:,.2f} M parameters, {e.trainable / 1e6:,.2f} M trained (shape: {shape.source})"
    peaks = [("peak of the update", e.update + update), ("peak of the rollout", e.rollout + rollout)]
    found = [head, *table(parts, peaks)]
    if e.piece.tokens > config.model.piece_tokens:
        whole = "a whole group" if e.piece.scope == "group" else "all rows of an update"
        found.append(f"a piece holds {whole} ({e.piece.tokens} tokens at full length): the recipe compares its rows")
    return found
