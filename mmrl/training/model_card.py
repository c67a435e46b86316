"""README.md of an exported folder: what the model is, how it was made, what it reaches, how to load it.

Names and texts come from configurations, data and checkpoints: they are untrusted, and written so that neither
Markdown nor HTML nor YAML sees anything but text. Folders of this machine appear by their last part only.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from mmrl import __version__, yaml_io
from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.training.exported import Exported, is_hub_id, public_name

TEMPLATE = "model_card.md.j2"
USED = {"train": "training", "eval": "evaluation"}
FORMS = {
    "full": "All that was trained is in these weights",
    "merged": "The trained adapter is part of these weights",
    "adapter": "This folder holds the LoRA adapter alone; it needs its base model",
}


@dataclass(frozen=True)
class Facts:
    """What is known of an exported model.

    start    the model that training began from: hub id, folder or embedded name.
    before, after, chance    metrics of the held-out records.
    data     train and eval -> (name of a source, number of its records or None) each.
    """

    config: Config
    recipe: Recipe
    done: Exported
    start: str | None
    step: int | None
    seconds: float | None
    tokens: int | None
    before: dict[str, Any]
    after: dict[str, Any]
    chance: dict[str, Any]
    data: dict[str, list[tuple[str, int | None]]]


def card(facts: Facts) -> str:
    """The card as Markdown with YAML in front."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mmrl.training", "."),
        autoescape=False,  # this is Markdown: the filter `text` escapes for it
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["text"] = text
    page = environment.get_template(TEMPLATE).render(
        facts=facts,
        config=facts.config,
        front=front_matter(facts),
        name=text(" with ".join(filter(None, (start_name(facts), facts.recipe.title)))),
        opening=opening(facts),
        notes=notes(facts),
        metrics=metric_rows(facts),
        data=data_rows(facts),
        training=training_rows(facts),
        rewards=", ".join(f"{c.name} (weight {c.weight:g})" for c in facts.config.rewards.components),
        judges=", ".join(f"{c.name}" for c in facts.config.eval.judges),
        options=[(key, plain(value)) for key, value in facts.config.recipe_options.items()],
        versions=versions(facts.done.library),
    )
    return re.sub(r"\n{3,}", "\n\n", page).rstrip() + "\n"


_MARKS = str.maketrans({c: "\\" + c for c in "\\`*_[]|#~!$"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def text(value: object) -> str:
    """Any text on one line, with nothing in it that Markdown or HTML would act on, links included."""
    line = " ".join(
        "".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in str(value)).split()
    )
    return line.translate(_MARKS).replace("://", ":&#47;&#47;")


def front_matter(facts: Facts) -> str:
    """What model hubs read; nothing in it is guessed."""
    front: dict[str, Any] = {"library_name": facts.done.library, "pipeline_tag": facts.done.pipeline}
    if facts.start is not None and is_hub_id(facts.start):
        front["base_model"] = facts.start
        front["base_model_relation"] = "adapter" if facts.done.form == "adapter" else "finetune"
    slug = facts.recipe.slug if re.fullmatch(r"[a-z0-9-]+", facts.recipe.slug) else "own-recipe"
    front["tags"] = list(dict.fromkeys(["mmrl", slug, *(["lora"] if facts.done.form != "full" else [])]))
    return yaml_io.dump(front)


def opening(facts: Facts) -> str:
    """Two sentences: what it is, from what, by which method."""
    name = start_name(facts)
    start = f"{text(name)}, trained" if name else "A model trained"
    paper, how = facts.recipe.paper, facts.recipe.title
    title, arxiv = str(paper.get("title") or ""), str(paper.get("arxiv") or "")
    method = text(how)
    if re.fullmatch(r"\d{4}\.\d{4,5}", arxiv):
        method += f" ({text(title)}, arXiv [{arxiv}](https://arxiv.org/abs/{arxiv}))"
    elif title:
        method += f" ({text(title)})"
    by = "by imitation" if facts.recipe.experience == "records" else "by reward"
    size = f"{facts.done.parameters:,} parameters, {facts.done.dtype}"
    kind = f"{FORMS[facts.done.form]} ({text(facts.done.architecture)}, {size})"
    return f"{start} {by} with {method}, using mmrl {__version__}.\n{kind}."


def start_name(facts: Facts) -> str | None:
    """The model that training began from, as a person reads it."""
    if facts.start is None:
        return None
    name = public_name(facts.start)
    return f"The embedded {name.removeprefix('embedded:')} model of mmrl" if name.startswith("embedded:") else name


def notes(facts: Facts) -> list[str]:
    """How the model was asked in training, which a user must repeat."""
    found = [facts.done.words.wording]
    sampling = facts.config.sampling
    if getattr(sampling, "temperature", None) is not None and facts.recipe.experience != "records":
        found.append(f"Training sampled at temperature {sampling.temperature:g}.")
    if getattr(sampling, "stop", None):
        found.append(f"Training also ended answers at {text(plain(sampling.stop))}; `generate` does so only if told.")
    return found + [text(note) for note in facts.done.notes]


def metric_rows(facts: Facts) -> list[tuple[str, str, str, str]]:
    names = list(facts.before) + [name for name in facts.after if name not in facts.before]
    columns = (facts.chance, facts.before, facts.after)
    return [(name, *(_number(column.get(name)) for column in columns)) for name in names]  # type: ignore[misc]


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and not isinstance(value, bool) else "not known"


def data_rows(facts: Facts) -> list[tuple[str, str, str]]:
    rows = []
    for which, sources in facts.data.items():
        for name, number in sources:
            cut = facts.config.data.eval_records if which == "eval" else None
            shown = "not counted" if number is None else f"{number}" + (f", the first {cut} used" if cut else "")
            rows.append((USED[which], name, shown))
    return rows


def training_rows(facts: Facts) -> list[tuple[str, str]]:
    config, group = facts.config, facts.config.train.group if facts.recipe.experience != "records" else 1
    rows = [
        ("recipe", facts.recipe.slug if not facts.recipe.slug.endswith((".yaml", ".yml")) else "an own file"),
        ("steps", f"{facts.step} of {config.train.steps} planned" if facts.step is not None else "not known"),
        ("prompts a step", f"{config.train.prompts}"),
        (f"{facts.done.words.samples} a prompt", f"{group}"),
        ("optimiser", f"{config.optimiser.kind}, learning rate {config.optimiser.lr:g}, {config.optimiser.schedule}"),
        ("seed", f"{config.seed}"),
    ]
    if config.ema.enabled:
        rows.append(("weights", f"exponential average, decay {config.ema.decay:g}"))
    adapter = getattr(config.model, "adapter", None)
    if adapter is not None and adapter.kind != "none":
        rows.append(("adapter", f"LoRA, rank {adapter.rank}, alpha {adapter.alpha:g}"))
    if getattr(config.model, "freeze", None):
        rows.append(("frozen", ", ".join(config.model.freeze)))
    rows += facts.done.settings
    if facts.seconds is not None:
        rows.append(("training time", f"{facts.seconds:.0f} s"))
    if facts.tokens:
        rows.append((facts.done.words.units, f"{facts.tokens:,}"))
    return rows


def plain(value: Any) -> str:
    """A configuration value on one line, as YAML writes it."""
    return " ".join(yaml_io.dump(value).replace("\n...\n", "").split())


def versions(library: str) -> str:
    """The software at hand; `library` is the one that loads the folder."""
    found = [f"mmrl {__version__}", f"Python {platform.python_version()}"]
    for name in dict.fromkeys(("torch", "transformers", "peft", *([] if library == "mmrl" else [library]))):
        found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)
