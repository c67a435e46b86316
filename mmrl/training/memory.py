"""How much memory a run needs on one rank, from shapes alone. Loads no torch and no weights.

What families share is here; each estimates its own parts in the function `memory_lines(config, recipe, *, ranks)`
of its config module. An estimate counts what a step keeps, not what the allocator fragments: expect 10 to 20 % more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrl import families
from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.errors import UserError

GIB = 2**30
#: A part and its bytes; None where the size is not known.
Part = tuple[str, float | None]


def describe(config: Config, recipe: Recipe, *, ranks: int = 1) -> list[str]:
    """The family's estimate as text; `size unknown` where it has none, or the shapes are not known."""
    lines = getattr(families.config_module(config.family), "memory_lines", None)
    if lines is None:
        return [f"size unknown: family {config.family} does not estimate its memory"]
    found: list[str] = lines(config, recipe, ranks=ranks)
    return found


def optimiser_bytes(config: Config, trainable: int) -> float:
    """AdamW keeps two float32 values per trainable parameter, its 8-bit form two bytes."""
    return (2.0 if config.optimiser.kind == "adamw8bit" else 8.0) * trainable


def average_bytes(config: Config, trainable: int) -> float:
    """The moving average of the trainable parameters, float32; it lives beside them."""
    return 4.0 * trainable if config.ema.enabled else 0.0


def needs_reference(recipe: Recipe) -> bool:
    """Whether a frozen copy is kept: some KL penalty of non-zero coefficient compares with the weights of step 0."""
    specs = [spec for channel in recipe.channels.values() for spec in channel.penalties]
    return any("kl" in str(spec["name"]) and spec.get("coef", 1) != 0 for spec in specs)


def rows_per_rank(config: Config, recipe: Recipe, ranks: int) -> int:
    """Rollouts that one rank holds at most: whole groups."""
    group = 1 if recipe.experience == "records" else config.train.group
    return -(-config.train.prompts // ranks) * group


def table(parts: Sequence[Part], peaks: Sequence[Part]) -> list[str]:
    """A line a part; names are as wide as the widest of `parts`."""
    width = max(len(name) for name, _ in parts)
    return [
        f"{name:<{width}} " + ("size unknown" if size is None else f"{size / GIB:9.3f} GiB")
        for name, size in (*parts, *peaks)
    ]


def read_config(file: Path) -> dict[str, Any]:
    """A model's config.json. Raises UserError with the place of what is broken."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: broken JSON: {error.msg}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: expected an object {{...}}; give a folder written by save_pretrained")
    return found
