"""How much memory a run of a masked diffusion language model needs on one rank, from shapes alone. Loads no torch.

Parameter counts are exact (`dlm.shapes`); the rest is an estimate (`mmrl.training.memory`).
"""

from __future__ import annotations

from dataclasses import dataclass

from dlm.shapes import Shape, shape_of
from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.training.memory import average_bytes, needs_reference, optimiser_bytes, rows_per_rank, table


@dataclass(frozen=True)
class Kept:
    """Bytes that a block keeps of one column for its backward pass, for each element of the residual stream, of the
    feed-forward's inside, of the queries, and of queries and keys again where they are normalised. Counted on this
    package's model (see the tests)."""

    hidden: float
    inner: float
    queries: float
    normed: float


#: By (adapter, bfloat16): norms and rotations are in float32 in all of them.
KEPT = {
    (True, True): Kept(18.0, 8.0, 10.25, 4.25),
    (False, True): Kept(26.0, 8.0, 8.25, 6.25),
    (True, False): Kept(16.0, 16.0, 16.25, 4.25),
    (False, False): Kept(24.0, 16.0, 16.25, 8.25),
}
#: Values alive at once in a forward without gradient, of the width of the residual stream and of the feed-forward.
ALIVE_HIDDEN, ALIVE_INNER = 4, 3
#: Masked positions whose logits the sampler makes at once (`dlm.sampling.sampler`), and tables of that size.
POSITIONS, LOGITS = 512, 5


@dataclass(frozen=True)
class Estimate:
    """Bytes on one rank. `trainable`, `parameters`, `row` and `columns` are counts: columns of one row at its longest,
    of one piece of the update."""

    parameters: int
    trainable: int
    row: int
    columns: int
    base: float
    adapter: float
    reference: float
    gradients: float
    optimiser: float
    average: float
    casts: float
    activations: float
    head: float
    cache: float
    decoding: float

    @property
    def resting(self) -> float:
        """What stays through the whole run."""
        return self.base + self.adapter + self.reference + self.optimiser + self.average

    @property
    def update(self) -> float:
        """Peak while updating."""
        return self.resting + self.gradients + self.casts + self.activations + self.head

    @property
    def rollout(self) -> float:
        """Peak while sampling; gradients are freed."""
        return self.resting + self.casts + self.cache + self.decoding


def estimate(config: Config, recipe: Recipe, shape: Shape, *, ranks: int = 1) -> Estimate:
    """The parts of the memory of one rank.

    What trains is float32; the base below an adapter rests in bfloat16 on a GPU. The reference of an adapter is the
    model with it off, otherwise a copy. Under autocast weights that train are copied to bfloat16. A piece is at least
    one row; a row of a block-attention model is shown twice in the update, [clean | noisy], its prompt once.
    """
    model, sampling = config.model, config.sampling
    lora = model.adapter.kind == "lora"
    width = 2.0 if model.autocast != "off" and config.device != "cpu" else 4.0
    trainable = shape.adapter(model.adapter.rank, model.adapter.targets) if lora else shape.parameters
    rows, row = rows_per_rank(config, recipe, ranks), row_columns(config, shape)
    columns = max(row, min(model.piece_tokens, rows * row))
    seen = columns if model.packing else row  # packed rows are one sequence, whose mask is as wide
    together = sampling.batch_rows if config.data.eval is not None else min(sampling.batch_rows, rows)
    return Estimate(
        parameters=shape.parameters,
        trainable=trainable,
        row=row,
        columns=columns,
        base=shape.parameters * width if lora else 4.0 * shape.parameters,
        adapter=4.0 * trainable if lora else 0.0,
        reference=4.0 * trainable if needs_reference(recipe) and not lora else 0.0,
        gradients=4.0 * trainable,
        optimiser=optimiser_bytes(config, trainable),
        average=average_bytes(config, trainable),
        casts=0.0 if lora or width == 4 else 2.0 * shape.layers * shape.matrices,
        activations=kept(
            shape, columns, seen, KEPT[lora, width == 2], width=width, checkpointing=model.gradient_checkpointing
        ),
        head=4.0 * 2 * min(model.head_chunk, columns) * shape.vocab,  # logits and their gradient, float32
        cache=_cache(config, shape, together) * width,
        decoding=_decoding(config, shape, together, width),
    )


def row_columns(config: Config, shape: Shape | None) -> int:
    """Columns of a row at its longest under one view of the update, as `dlm.forward.columns` counts them."""
    prompt, canvas = config.inputs.max_prompt_tokens, config.sampling.max_new_tokens
    if shape is None or shape.attention == "full":
        return prompt + canvas
    return int(prompt + 2 * (canvas + (shape.block or 0)))


def kept(shape: Shape, columns: int, seen: int, costs: Kept, *, width: float, checkpointing: bool) -> float:
    """Bytes kept for the backward pass of a piece whose columns see up to `seen` others, the attention bias that each
    block makes of the mask among them. With checkpointing the input of each block and one block's."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    block = costs.hidden * shape.hidden + costs.inner * shape.intermediate + costs.queries * q + width * seen
    block += costs.normed * (q + kv) if shape.qk_norm else 0.0
    return columns * (shape.layers * width * shape.hidden + block if checkpointing else shape.layers * block)


def _cache(config: Config, shape: Shape, rows: int) -> float:
    """Keys and values of every row at its full length."""
    if config.sampling.cache == "off":
        return 0.0
    length = config.inputs.max_prompt_tokens + config.sampling.max_new_tokens
    return 2.0 * shape.layers * shape.kv_heads * shape.head_dim * rows * length


def _decoding(config: Config, shape: Shape, rows: int, width: float) -> float:
    """One forward of the rollout: its widest block over the columns that are computed at once (with the block cache the
    prompt's), the keys and values that attention repeats for grouped heads, and float32 logits."""
    sampling, prompt = config.sampling, config.inputs.max_prompt_tokens
    length = prompt + sampling.max_new_tokens
    block = shape.block if shape.attention == "block" else sampling.block
    block = min(block or sampling.max_new_tokens, sampling.max_new_tokens)
    computed = rows * (max(prompt, block) if sampling.cache == "block" else length)
    inside = computed * (ALIVE_HIDDEN * shape.hidden + ALIVE_INNER * shape.intermediate) * width
    repeated = 2.0 * rows * length * shape.heads * shape.head_dim * width if shape.heads > shape.kv_heads else 0.0
    return inside + repeated + 4.0 * LOGITS * min(POSITIONS, rows * block) * shape.vocab


def piece_lines(config: Config, *, rows: int) -> list[str]:
    """How the rows of an optimiser step are cut, for the group arithmetic of a dry run."""
    shape = shape_of(config.model.path, config.model.base, block=config.model.block)
    budget, row = config.model.piece_tokens, row_columns(config, shape)
    fits = max(1, budget // row)
    pairs = ", [clean | noisy]" if shape is not None and shape.attention == "block" else ""
    return [
        f"gradients accumulate over pieces of at most {budget} columns: {fits} rows at their longest, of {row} columns "
        f"each{pairs}; {-(-rows // fits)} pieces an optimiser step and rank for each forward that the likelihood "
        f"({config.sampling.likelihood.name}) takes of a row"
    ]


def memory_lines(config: Config, recipe: Recipe, *, ranks: int = 1) -> list[str]:
    """The estimate as text; `size unknown` where the shapes are not known."""
    shape = shape_of(config.model.path, config.model.base, block=config.model.block)
    if shape is None:
        return [
            f"size unknown: {config.model.path} is neither a folder with a config.json of a known shape nor in the "
            "table of shipped shapes; save the model to a folder to get an estimate"
        ]
    e = estimate(config, recipe, shape, ranks=ranks)
    lora = config.model.adapter.kind == "lora"
    pairs = " [clean | noisy]" if shape.attention == "block" else ""
    parts = [
        ("base model" if lora else "weights", e.base),
        *([("adapter", e.adapter)] if lora else []),
        *([("frozen reference", e.reference)] if e.reference else []),
        ("gradients", e.gradients),
        ("optimiser", e.optimiser),
        *([("moving average", e.average)] if config.ema.enabled else []),
        *([("bfloat16 copies of the weights", e.casts)] if e.casts else []),
        (f"activations of a piece of {e.columns} columns{pairs}", e.activations),
        (f"logits of {min(config.model.head_chunk, e.columns)} positions and their gradient", e.head),
        *([(f"key-value cache of the rollout ({config.sampling.cache})", e.cache)] if e.cache else []),
        ("one forward of the rollout", e.decoding),
    ]
    head = f"{e.parameters / 1e6:,.2f} M parameters, {e.trainable / 1e6:,.2f} M trained (shape: {shape.source})"
    return [head, *table(parts, [("peak of the update", e.update), ("peak of the rollout", e.rollout)])]
