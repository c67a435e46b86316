"""From a configuration to the objects of a run: recipe, records, policy, rewards, selector."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mmrl import __version__, config_io, families
from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.data.images import check_header, open_image
from mmrl.data.read import read_records
from mmrl.data.records import Record
from mmrl.data.rows import Require
from mmrl.errors import UserError
from mmrl.plugins import load_plugins
from mmrl.rewards.plan import record_check
from mmrl.rewards.score import Scorer
from mmrl.selection.base import Selector
from mmrl.training import random_states
from mmrl.training.devices import find_device
from mmrl.training.objectives import channels_of, check_requests, check_rewards, of_run, optimiser_settings
from mmrl.training.policy import Policy
from mmrl.training.team import ALONE, Team
from mmrl.training.trainer import Trainer

Tell = Callable[[str], None]
TOLD = 20  # skipped records that are named one by one


def prepare_machine(config: Config) -> None:
    """Threads, device, determinism of the global generator, plug-ins, native stages of the family."""
    find_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    random_states.seed(config.seed)
    load_extensions(config)


def load_extensions(config: Config) -> None:
    """Plug-ins, native stages and rewards of the family."""
    load_plugins(config.plugins)
    for module in families.family(config.family).extra_stages:
        importlib.import_module(module)


def kept_whole(config: Config) -> str:
    """What no piece of an update is cut below, for stages of the recipe (token weights, a gate, plug-ins among them)
    compare its rows: `group`, `batch`, or only the `row`."""
    load_extensions(config)
    scopes = {objective.scope for objective in of_run(config)[-1].values()}
    return next((wide for wide in ("batch", "group") if wide in scopes), "row")


def load_records(
    config: Config,
    which: str,
    *,
    require: Require | None = None,
    tell: Tell = print,
    skipped: list[str] | None = None,
) -> list[Record]:
    """`which`: train or eval. Files are read as JSONL; `digits:train` and the like come with the family.

    Pictures and videos are looked at while reading: the headers of train, every pixel of eval (they are all decoded
    before the first step anyway). So are the answers that the run's rewards will compare with. `require`: what a record
    must have; default what the family's rewards need. `skipped` gets a line per record left out (only with
    data.on_error: skip).
    """
    require = require or needed(config)
    source = getattr(config.data, which)
    if source is None:
        return []
    names = [source] if isinstance(source, str) else source
    out: list[Record] = []
    for name in filter(config_io.is_embedded, names):
        out += families.entry(config.family).builtin(name)
    limits = picture_limits(config)
    imitated = which == "train" and config_io.recipe_of(config).experience == "records"
    further = look_of(config, whole=which == "eval", rewarded=not imitated)

    def look(record: Record) -> None:
        for image in record.images:
            if which == "eval":
                open_image(image, **limits)
            else:
                check_header(image, **limits)
        further(record)

    files = [Path(name) for name in names if not config_io.is_embedded(name)]
    if files:  # all at once: an id that stands in two files is found
        records, problems = read_records(files, on_error=config.data.on_error, require=require, look=look)
        for problem in problems[:TOLD]:
            tell(f"record skipped: {problem}")
        if len(problems) > TOLD:
            tell(f"... and {len(problems) - TOLD} more records of data.{which} (mmrl check-data lists them)")
        if skipped is not None:
            skipped += problems
        out += records
    if not out:
        raise UserError(f"data.{which}: no records in {source}; add some")
    if which == "eval" and config.data.eval_records:
        out = out[: config.data.eval_records]
    return out


def look_of(config: Config, *, whole: bool, rewarded: bool) -> Callable[[Record], None]:
    """What is looked at of a record besides its pictures: with `rewarded` that its answer suits the rewards of the run,
    and what the family looks at (its videos; `whole` as in `entry.look`). The function raises UserError."""
    own = getattr(families.entry(config.family), "look", None)
    check = record_check(config.rewards.components) if rewarded else None

    def look(record: Record) -> None:
        if check is not None:
            check(record)
        if own is not None:
            own(record, config, whole=whole)

    return look


def needed(config: Config, *, imitation: bool = False) -> Require:
    """What a record must have to be rewarded (an answer) or imitated (a response), unless the family says otherwise."""
    module = families.config_module(config.family)
    found: Require = getattr(module, "DEMONSTRATION", "response") if imitation else getattr(module, "REQUIRE", "answer")
    return found


def picture_limits(config: Config) -> dict[str, int]:
    """The limits of a family that sets some; else those of `mmrl.data.images`."""
    if not hasattr(config.inputs, "max_image_side"):
        return {}
    return {"max_side": config.inputs.max_image_side, "max_pixels": config.inputs.max_image_pixels}


def check_family(config: Config) -> None:
    """What the family itself refuses before weights load: a mode it does not have, and `check(config)` of its entry."""
    entry = families.entry(config.family)
    if config.distributed.mode == "fsdp2" and families.policy_class(config).shard is Policy.shard:
        raise UserError(f"distributed.mode: fsdp2 is not available for family {config.family!r}; use ddp")
    if hasattr(entry, "check"):
        entry.check(config)


@dataclass
class _Parts:
    """What a run is made of, before ranks meet."""

    recipe: Recipe
    select: type[Selector]
    train: list[Record]
    held_out: list[Record]
    skipped: list[str]
    scorer: Scorer
    policy: Policy


def build_trainer(config: Config, tell: Tell, team: Team = ALONE) -> tuple[Trainer, Policy, list[Record]]:
    """Everything up to the first step. Recipe and records are checked before weights load, and between ranks."""
    if config.train.prompts < team.size:
        raise UserError(
            f"train.prompts: {config.train.prompts} prompts a step cannot be shared by {team.size} processes; a group "
            "stays whole on its rank, so ask for at least as many prompts, or start fewer"
        )
    parts = team.together(lambda: _load(config, tell))
    recipe, policy = parts.recipe, parts.policy
    if team.size > 1:
        told = [(r.id, r.task, r.prompt, r.answer, r.response, r.frame) for r in (*parts.train, *parts.held_out)]
        team.check_alike(version=__version__, configuration=config.model_dump(exclude={"device"}), records=told)
        team.same_start(p for channel in channels_of(recipe, policy) for p in policy.parameters_of(channel))
        if config.distributed.mode == "fsdp2":
            policy.shard(team.size)
    group = 1 if recipe.experience == "records" else config.train.group
    order = {"prompts": config.train.prompts, "group": group, "seed": config.seed, "shuffle": config.data.shuffle}
    selector = parts.select(parts.train, **order, **config.selection.options)  # type: ignore[arg-type]
    trainer = Trainer(config, recipe, policy, selector, parts.scorer, tell, team)
    trainer.unread_records = len(parts.skipped)
    return trainer, policy, parts.held_out


def _load(config: Config, tell: Tell) -> _Parts:
    config_io.check(config)  # again: a Config may have been made or changed in Python
    prepare_machine(config)
    check_family(config)
    entry = families.entry(config.family)
    recipe, kind, select, aims = of_run(config)
    check_requests(kind, select, config.selection.options)
    for channel in channels_of(recipe, kind):
        own = recipe.channel(channel).optimiser
        optimiser_settings(config, recipe, channel)
        if own:
            tell(f"optimiser of channel {channel}: " + ", ".join(f"{k}={v}" for k, v in own.items()))
    require = needed(config, imitation=recipe.experience == "records")
    skipped: list[str] = []
    train = load_records(config, "train", require=require, tell=tell, skipped=skipped)
    held_out = load_records(config, "eval", tell=tell, skipped=skipped)
    rewarded = held_out if recipe.experience == "records" else [*train, *held_out]
    scorer = Scorer(config.rewards, tasks={r.task for r in rewarded} or None)
    check_rewards(recipe, aims, select, config.selection.options, scorer.plan)
    policy = entry.load_policy(config)
    for line in policy.meet([*train, *held_out]):
        tell(line)
    return _Parts(recipe, select, train, held_out, skipped, scorer, policy)
