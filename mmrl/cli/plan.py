"""What `--dry-run` prints: the resolved configuration, the group arithmetic, the memory estimate. Loads no weights."""

from __future__ import annotations

import os

import typer

from mmrl import config_io
from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.errors import UserError


def show(config: Config) -> None:
    """Print the plan of a run."""
    from mmrl.cli import preflight
    from mmrl.training import memory

    recipe = config_io.recipe_of(config)
    if found := preflight.problems(config):
        raise UserError("; ".join(found))
    ranks = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
    typer.echo("# resolved configuration")
    typer.echo(config_io.dump(config).rstrip() + "\n")
    typer.echo("# group arithmetic")
    for line in arithmetic(config, recipe, ranks=ranks):
        typer.echo(line)
    typer.echo("\n# memory of one rank, estimated")
    for line in memory.describe(config, recipe, ranks=ranks):
        typer.echo(line)


def arithmetic(config: Config, recipe: Recipe, *, ranks: int) -> list[str]:
    """The size of a step in words: prompts x group, cut into minibatches, spread over ranks."""
    train = config.train
    epochs = train.epochs or recipe.epochs
    minibatches = train.minibatches or recipe.minibatches
    rows = train.prompts * train.group
    updates = epochs * minibatches
    per_rank = -(-train.prompts // ranks)
    tokens = getattr(config.sampling, "max_new_tokens", None)
    out = [
        f"{train.prompts} prompts x {train.group} samples = {rows} rollouts a step, over all ranks",
        f"{count(ranks, 'rank')}: up to {count(per_rank, 'prompt')} = {count(per_rank * train.group, 'rollout')} each"
        " (a group stays whole on its rank)",
        f"{count(epochs, 'pass', 'passes')} x {count(minibatches, 'minibatch', 'minibatches')}"
        f" = {count(updates, 'optimiser step')} per batch of rollouts, each over about {rows // minibatches} rollouts",
    ]
    budget = getattr(config.model, "piece_tokens", None)
    if tokens and budget:
        chunk = max(1, budget // tokens)
        pieces = -(-(per_rank * train.group) // chunk)
        out.append(
            f"gradients accumulate over pieces of at most {budget} tokens: at most {count(pieces, 'piece')} of"
            f" completions a rank when all reach {tokens} tokens"
        )
    out.append(f"{train.steps} steps = {train.steps * rows} rollouts, {train.steps * updates} optimiser steps")
    return out


def count(n: int, one: str, many: str | None = None) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{n} {one if n == 1 else many or one + 's'}"
