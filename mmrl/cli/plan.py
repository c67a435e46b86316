"""What `--dry-run` prints: the resolved configuration, the group arithmetic, the memory estimate. Loads no weights."""

from __future__ import annotations

import typer

from mmrl import config_io, families
from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.errors import UserError
from mmrl.launched import world_size

#: Lengths of prompts that pieces are counted for, besides the configured limit.
PROMPT_TOKENS = (256, 1024)


def show(config: Config) -> None:
    """Print the plan of a run."""
    from mmrl.cli import preflight
    from mmrl.training import memory

    recipe = config_io.recipe_of(config)
    if found := preflight.problems(config):
        raise UserError("; ".join(found))
    ranks = world_size()
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
    from mmrl.training.setup import kept_whole

    train = config.train
    epochs = train.epochs or recipe.epochs
    minibatches = train.minibatches or recipe.minibatches
    imitates = recipe.experience == "records"
    group = 1 if imitates else train.group
    rows = train.prompts * group
    updates = epochs * minibatches
    per_rank = -(-train.prompts // ranks)
    tokens = getattr(config.sampling, "max_new_tokens", None)
    out = [
        f"{count(train.prompts, 'record')} a step, over all ranks, each imitated once (train.group is not used)"
        if imitates
        else f"{train.prompts} prompts x {train.group} samples = {rows} rollouts a step, over all ranks",
        f"{count(ranks, 'rank')}: up to {count(per_rank, 'prompt')} = {count(per_rank * group, 'rollout')} each"
        " (a group stays whole on its rank)",
        f"{count(epochs, 'pass', 'passes')} x {count(minibatches, 'minibatch', 'minibatches')}"
        f" = {count(updates, 'optimiser step')} per batch of rollouts, each over about {rows // minibatches} rollouts",
    ]
    if ranks == 1 and config.distributed.mode == "fsdp2":
        out.append(
            "distributed.mode fsdp2 keeps weights in shards, and this is the plan of one process that holds them all: "
            "the dry run under torchrun, with as many processes as the run, is that of one of them"
        )
    budget = getattr(config.model, "piece_tokens", None)
    own = getattr(families.config_module(config.family), "piece_lines", None)
    if own is not None:
        out += own(config, rows=-(-per_rank // minibatches) * group)
    elif tokens and budget and (scope := kept_whole(config)) != "row":
        told = {"group": "whole groups", "batch": "all rows of an update on its rank"}[scope]
        cut = -(-per_rank // minibatches) if scope == "group" else 1
        out.append(
            f"gradients accumulate over pieces of {told}, whatever model.piece_tokens says, for the recipe compares"
            f" rows: at most {count(cut, 'piece')} an optimiser step and rank"
        )
    elif tokens and budget:
        prompts = -(-per_rank // minibatches)
        longest = getattr(config.inputs, "max_prompt_tokens", None)
        out.append(
            f"gradients accumulate over pieces of at most {budget} tokens, prompts counted; how many rows fit depends"
            f" on the prompts' length, here for completions of all {tokens} tokens:"
        )
        for length in sorted({n for n in (*PROMPT_TOKENS, longest) if n and n <= (longest or n)}):
            fits = max(1, budget // (length + tokens))
            cut = pieces(prompts, group, prompt=length, completion=tokens, budget=budget)
            most = " (the limit, inputs.max_prompt_tokens)" if length == longest else ""
            out.append(
                f"  prompts of {length} tokens{most}: {count(fits, 'row')} a piece, {count(cut, 'piece')} an optimiser"
                " step and rank"
            )
        out.append(
            "  (each row counts its prompt; model.shared_prefix: packed counts it once a prompt and needs fewer pieces)"
        )
    images = getattr(config.model, "piece_rows", None)
    if own is None and images:
        an_update = -(-per_rank // minibatches) * group
        cut = -(-an_update // images)
        out.append(
            f"gradients accumulate over pieces of one denoising step of at most {count(images, 'image')}:"
            f" {count(cut, 'piece')} for each trained step, an optimiser step and rank"
        )
    out.append(f"{train.steps} steps = {train.steps * rows} rollouts, {train.steps * updates} optimiser steps")
    if train.max_seconds is not None:
        planned = config.optimiser.schedule != "constant"
        out.append(
            f"ends earlier once {train.max_seconds:g} s of training are used up (train.max_seconds)"
            + (
                f"; the {config.optimiser.schedule} schedule is laid out over all {train.steps} steps"
                if planned
                else ""
            )
        )
    return out


def pieces(prompts: int, group: int, *, prompt: int, completion: int, budget: int) -> int:
    """Pieces of `mmrl.vlm.batching.plan` for prompts and completions of one length each (forms cache and off): a row
    costs prompt + completion, and only prompts that fit the budget together share a bundle."""
    chunk = max(1, budget // (prompt + completion))
    whole, rest = divmod(prompts, max(1, budget // prompt))
    bundles = [max(1, budget // prompt)] * whole + [rest] * (rest > 0)
    return sum(-(-(n * group) // chunk) for n in bundles)


def count(n: int, one: str, many: str | None = None) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{n} {one if n == 1 else many or one + 's'}"
