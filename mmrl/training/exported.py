"""What a family is asked to export and what it says of it; how models are named to others. Loads no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Form = Literal["full", "merged", "adapter"]
#: Beside exported weights and stored adapters: their family, and what else that wants to know again.
NOTE = "mmrl.json"


@dataclass(frozen=True)
class Wanted:
    """dtype: float32 or bfloat16; None keeps that of the base model (of an adapter alone: of the adapter)."""

    adapter_only: bool = False
    dtype: str | None = None
    max_shard_size: str = "5GB"


@dataclass(frozen=True)
class Words:
    """What a family's model card and the command call things; these are the words of models that answer questions.

    outputs   what was compared, in the plural.
    results   what the metrics were measured on.
    constant  what the chance level is the level of.
    samples   rows of a group.
    units     what the run counted as its decisions.
    wording   advice on prompts.
    names_base    the file beside an adapter that names its base model.
    """

    outputs: str = "logits"
    results: str = "Greedy answers to the held-out records"
    constant: str = "the best constant answer"
    samples: str = "answers"
    units: str = "tokens in answers"
    wording: str = "Ask as the training records ask: a model trained by reward knows their wording best."
    names_base: str = "adapter_config.json"


@dataclass(frozen=True)
class Compared:
    """A further comparison, beside the one of `Exported`: how far `what` differs at most, and may differ."""

    what: str
    difference: float
    tolerance: float


@dataclass(frozen=True)
class Exported:
    """A folder that was written and compared with the model as its run evaluates it.

    form         full: all weights were trained; merged: the adapter is part of the weights; adapter: it is alone.
    parameters   numbers written.
    base         the base model of an adapter, as the run knows it (perhaps a path of this machine); else None.
    usage        Python code that loads the folder and uses it.
    difference   largest absolute difference of outputs, after merging and after a reload by a fresh process.
    rounding     the same difference that rounding to `dtype` makes; None when nothing was rounded.
    compared     on what: `64 positions of record 'a'`.
    further      what else was compared after the reload.
    notes        plain sentences for those who use the model.
    settings     (name, value) of the family for the card's table of training.
    """

    form: Form
    dtype: str
    architecture: str
    parameters: int
    base: str | None
    library: str
    pipeline: str
    usage: str
    difference: float
    tolerance: float
    rounding: float | None
    compared: str
    further: tuple[Compared, ...] = ()
    notes: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    words: Words = Words()


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite for another shape or a NaN."""
    if a.shape != b.shape:
        return float("inf")
    value = float((a - b).abs().max())
    return value if value == value else float("inf")


def looks_local(name: str) -> bool:
    """A path on disk, whether it exists or not, rather than the id of a model on a hub."""
    if name.startswith("embedded:"):
        return False
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def is_hub_id(name: str) -> bool:
    """`owner/name`, and no folder of this machine."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not looks_local(name) and not Path(name).exists()


def public_name(name: str) -> str:
    """A model as others may know it: the id of a hub or an embedded name as it is, a folder by its last part."""
    if is_hub_id(name) or name.startswith("embedded:"):
        return name
    folder = Path(name)
    return folder.parent.name if folder.name == "model" and folder.parent.name.startswith("step-") else folder.name
