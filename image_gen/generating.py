"""Pictures of a stored model, alone or beside another one: what `mmrl generate` does for every family of images.

Picture i of a prompt depends on (seed, prompt, i) alone, up to rounding: not on the number of pictures or prompts, nor
on the batch they are made in.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from image_gen.album import Made, remove_earlier, write_json, write_sheets
from image_gen.sections import Adapter
from image_gen.stored import base_of, is_lora
from mmrl import config_io, families
from mmrl.config import Config, Rewards, RewardSpec
from mmrl.core.streams import Streams, stream_seed
from mmrl.data.read import read_records
from mmrl.data.records import Record
from mmrl.data.rows import PICTURE_TASK
from mmrl.errors import UserError
from mmrl.training.exported import looks_local
from mmrl.training.policy import Policy
from mmrl.training.rollouts import Request

#: `--compare base`: the model that training began from.
OWN_BASE = "base"


@dataclass(frozen=True)
class Asked:
    """What a call asks for, whatever the family.

    prompt, prompts   one of them: a text, or a file of records.
    compare           a second model with equal seeds: a folder, a run, a hub id, or `base`.
    sampling          of each request, above the configuration's; a family says what it takes.
    """

    checkpoint: Path
    out: Path
    prompt: str | None = None
    prompts: Path | None = None
    n: int = 4
    seed: int = 0
    compare: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


def draw(
    asked: Asked,
    config: Config,
    used: Callable[[Config, Policy], dict[str, Any]],
    adjust: Callable[[Config], None] = lambda other: None,
) -> list[Path]:
    """PNGs, a contact sheet and pictures.json below `asked.out`; returns the files.

    used: steps, guidance, height and width of the pictures, which are told beside `asked.sampling`.
    adjust: the configuration of the model to compare with, where more than its path is another one.
    """
    other = None if asked.compare is None else other_model(config, asked.checkpoint, asked.compare)
    if other is not None:
        adjust(other)
    records = records_of(asked.prompt, asked.prompts, config)
    asked.out.mkdir(parents=True, exist_ok=True)
    policy = load(config, records)
    remove_earlier(asked.out)
    made = list(pictures("picture", policy, config, records, asked))
    settings = used(config, policy)
    if other is not None:
        del policy
        gc.collect()  # one model at a time in memory
        made += pictures("base", load(other, records), other, records, asked)
    told: dict[str, Any] = {"checkpoint": str(asked.checkpoint), "model": config.model.path}
    if other is not None:
        told["compared_with"] = other.model.path
    told |= {"seed": asked.seed, "n": asked.n, **settings, **asked.sampling}
    sheets = write_sheets(made, asked.out, told)
    return [*(asked.out / one.file for one in made), *sheets, write_json(made, asked.out, told)]


# which model


def settings(checkpoint: Path, config: str | None, *, family: str, recipe: str, base: str | None = None) -> Config:
    """The configuration given, else the run's own, else the defaults of `family` with `recipe` (an exported folder has
    none); its model.path is the checkpoint's model."""
    from mmrl.training.stored import model_folder, run_config, run_folder

    model = model_folder(checkpoint)
    if config is not None or run_folder(checkpoint) is not None:
        return run_config(checkpoint, config, model=model, base=base)
    plain = {
        "family": family,
        "recipe": recipe,
        "model": {"path": str(model.resolve()), "base": base},
        "data": {"train": "unread:records"},
    }
    return config_io.build(plain, folder=Path.cwd(), where=str(checkpoint))


def other_model(config: Config, checkpoint: Path, name: str) -> Config:
    """The same configuration with another model. An adapter that this one has is a fresh one there: it changes nothing,
    and both run in the same arithmetic. One that is stored keeps its own size."""
    from mmrl.training.stored import model_folder

    path = start_of(config, checkpoint) if name == OWN_BASE else name
    if Path(path).is_dir():
        path = str(model_folder(Path(path)).resolve())
    elif looks_local(path) or ("/" not in path and ":" not in path):
        raise UserError(f"--compare {path}: no such folder; give a folder, a run, a hub id, or `{OWN_BASE}`")
    other = config.model_copy(deep=True)
    adapter = Adapter(kind=config.model.adapter.kind) if is_lora(path) else config.model.adapter.model_copy()
    other.model = config.model.model_copy(update={"path": path, "base": None, "adapter": adapter})
    return other


def start_of(config: Config, checkpoint: Path) -> str:
    """The model that training began from: written beside a LoRA, else in the run's configuration."""
    from mmrl.training.stored import run_config, run_folder

    if is_lora(config.model.path):
        return base_of(config.model)
    if run_folder(checkpoint) is not None:
        return str(run_config(checkpoint, None).model.path)
    raise UserError(f"--compare {OWN_BASE}: {checkpoint} does not say what it was trained from; name the model")


def resize(config: Config, *, height: int | None, width: int | None) -> None:
    """The sides that were asked for, in place of the configuration's."""
    if height is not None:
        config.inputs.height = height
    if width is not None:
        config.inputs.width = width


# which prompts


def records_of(prompt: str | None, prompts: Path | None, config: Config) -> list[Record]:
    """The records asked for; their ids, which choose the noise, are those of the prompts. A prompt that is one of the
    run's own, and says nothing of itself, takes its task and metadata, so that the run's rewards apply to it."""
    if (prompt is None) == (prompts is None):
        raise UserError("--prompt and --prompts: give one of them")
    if prompts is not None:
        records = read_records(prompts, require="prompt")[0]
    else:
        records = [Record("prompt", PICTURE_TASK, prompt)]
    known = _known(config)
    found = []
    for one in records:
        bare = one.task == PICTURE_TASK and one.answer is None and not one.meta
        like = known.get(one.prompt, one) if bare else one
        key = f"{stream_seed('prompt', one.prompt):016x}"
        found.append(Record(key, like.task, one.prompt, answer=like.answer, meta=like.meta))
    return found


def _known(config: Config) -> dict[str, Record]:
    """The run's own records by prompt, as far as they are still there."""
    found: dict[str, Record] = {}
    for entry in (config.data.eval, config.data.train):
        for name in [entry] if isinstance(entry, str) else entry or []:
            if name.startswith("unread:"):
                continue
            if config_io.is_embedded(name):
                records = families.entry(config.family).builtin(name)
            elif Path(name).exists():
                records = read_records(name, require="prompt", on_error="skip")[0]
            else:
                continue
            for record in records:
                found.setdefault(record.prompt, record)
    return found


# pictures


def load(config: Config, records: Sequence[Record]) -> Policy:
    """The model of the configuration; it has met the prompts, so that its text encoders may be gone."""
    from mmrl.training.setup import prepare_machine

    prepare_machine(config)
    policy: Policy = families.entry(config.family).load_policy(config)
    for line in policy.meet(records):
        typer.echo(line)
    return policy


def pictures(model: str, policy: Policy, config: Config, records: Sequence[Record], asked: Asked) -> Iterator[Made]:
    """Make, store and score them, a batch at a time."""
    from image_gen.rewards.pictures import to_image

    scoring = Scoring(config)
    jobs = [(place, i) for place in range(len(records)) for i in range(asked.n)]
    batch = config.sampling.batch_rows
    for start in range(0, len(jobs), batch):
        some = jobs[start : start + batch]
        requests = _requests(some, records, asked.sampling)
        rollouts = policy.rollout(requests, Streams(asked.seed, 0, "generate"), greedy=True)
        scores = scoring(rollouts.outputs, rollouts.records)
        for (place, i), output, info, values in zip(some, rollouts.outputs, rollouts.info, scores, strict=True):
            file = f"{model}-{place}-{i}.png"
            to_image(output).save(asked.out / file)
            yield Made(model, records[place], i, file, values, info.get("unusable"))


def _requests(jobs: Sequence[tuple[int, int]], records: Sequence[Record], sampling: Mapping[str, Any]) -> list[Request]:
    """Neighbouring samples of one record as one request."""
    found: list[Request] = []
    before: int | None = None
    for place, i in jobs:
        if place == before:
            found[-1] = replace(found[-1], n=found[-1].n + 1)
        else:
            found.append(Request(records[place], 1, first_sample=i, sampling=dict(sampling)))
        before = place
    return found


class Scoring:
    """The run's own rewards and judges, where they apply. One that cannot be had (its weights are not here, or it
    was made in the program of the run) is told once and left out: the pictures are what was asked for."""

    def __init__(self, config: Config) -> None:
        self.config, self.missing = config, set[str]()

    def __call__(self, outputs: Sequence[Any], records: Sequence[Record]) -> list[dict[str, float]]:
        found: list[dict[str, float]] = [{} for _ in outputs]
        for spec in (*self.config.rewards.components, *self.config.eval.judges):
            if spec.name in self.missing:
                continue
            try:
                rows = [i for i, record in enumerate(records) if _applies(spec, record.task)]
                values = self._one(spec, [outputs[i] for i in rows], [records[i] for i in rows]) if rows else []
            except UserError as error:
                self.missing.add(spec.name)
                typer.echo(f"no scores of {spec.name}: {error}")
                continue
            for i, row in zip(rows, values, strict=True):
                found[i] |= row
        return found

    def _one(self, spec: RewardSpec, outputs: Sequence[Any], records: Sequence[Record]) -> list[dict[str, float]]:
        from image_gen.evaluate import scores

        alone = self.config.model_copy(update={"rewards": Rewards(components=[spec])})
        alone.eval = self.config.eval.model_copy(update={"judges": []})
        return scores(outputs, records, alone)


def _applies(spec: RewardSpec, task: str) -> bool:
    from mmrl.rewards import registry

    return task in registry.known_tasks() if spec.name == "auto" else registry.find(spec.name).applies(task)
