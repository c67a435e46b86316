"""`mmrl generate CHECKPOINT --prompt TEXT`: answers, or pictures, as the model's family makes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from mmrl.data.records import FRAMES
from mmrl.errors import UserError

OVERRIDES = "overrides"
Frame = StrEnum("Frame", {name: name for name in FRAMES})  # type: ignore[misc]


class Schedule(StrEnum):
    """Which schedule a masked image model is decoded by."""

    learned = "learned"
    base = "base"


def generate(
    checkpoint: Path = typer.Argument(..., help="Run folder (its best), step folder or exported folder."),
    overrides: list[str] | None = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Diffusion language models: settings, e.g. sampling.rule=threshold"
    ),
    prompt: str | None = typer.Option(None, "--prompt", help="The question, or what the picture shows."),
    prompts: Path | None = typer.Option(
        None, "--prompts", help="Image models: a file of prompts (text, one a line, or JSONL) in place of --prompt."
    ),
    image: list[Path] | None = typer.Option(
        None, "--image", help="Vision-language models: picture file; may be given several times."
    ),
    video: list[Path] | None = typer.Option(
        None, "--video", help="Video-language models: video file; may be given several times."
    ),
    n: int | None = typer.Option(
        None, "--n", min=1, max=10_000, help="Answers (default 1, greedy; several are sampled) or pictures (default 4)."
    ),
    seed: int | None = typer.Option(None, "--seed", min=0, max=2**63 - 1, help="Random seed; default 0."),
    steps: int | None = typer.Option(
        None,
        "--steps",
        min=1,
        max=1000,
        help="Image models: steps; default those of the run's evaluation. Diffusion LMs: forwards of an answer.",
    ),
    guidance: float | None = typer.Option(
        None, "--guidance", min=0.0, help="Image models: guidance scale; default that of the run's evaluation."
    ),
    height: int | None = typer.Option(
        None, "--height", min=1, max=16384, help="Image models: pixels; default the run's."
    ),
    width: int | None = typer.Option(
        None, "--width", min=1, max=16384, help="Image models: pixels; default the run's."
    ),
    schedule: Schedule | None = typer.Option(
        None,
        "--schedule",
        help="Masked image models: learned (default, by its mean) or base, the hand-made schedule below it.",
    ),
    compare: str | None = typer.Option(
        None,
        "--compare",
        help="Image models: another model beside this one, with equal seeds: folder, run, hub id, or `base`, the model "
        "that training began from.",
    ),
    frame: Frame | None = typer.Option(
        None,
        "--frame",
        help="Vision-language models: coordinates of the answers' boxes; default as in the run's records.",
    ),
    config: str | None = typer.Option(None, "--config", help="Configuration; default the run's own."),
    base: str | None = typer.Option(None, "--base", help="Base model of an adapter, where it is not found."),
    out: Path = typer.Option(Path("generated"), "--out", help="Folder for the pictures and a JSON that tells of them."),
) -> None:
    """Answer a prompt or a question about pictures or videos, or make pictures of a prompt."""
    given: dict[str, Any] = {
        OVERRIDES: overrides or None,
        "prompt": prompt,
        "prompts": prompts,
        "image": image or None,
        "video": video or None,
        "n": n,
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
        "height": height,
        "width": width,
        "schedule": None if schedule is None else schedule.value,
        "compare": compare,
        "frame": None if frame is None else frame.value,
        "config": config,
        "base": base,
        "out": out,
    }
    given = {name: value for name, value in given.items() if value is not None}
    from mmrl import families
    from mmrl.cli.checkpoints import OTHERWISE, family_of, require_checkpoint
    from mmrl.training.stored import run_folder

    folder = require_checkpoint(checkpoint)
    check_values(given)
    name = family_of(folder, config)
    if video and config is None and name == OTHERWISE and run_folder(folder) is None:
        name = "video"  # an exported folder: the same models read pictures and clips
    make: Callable[..., list[Path]] | None = getattr(families.entry(name), "generate", None)
    if make is None:
        raise UserError(f"{checkpoint}: models of family {name!r} do not generate from the command line")
    check_options(given, make, name)
    for path in make(folder, **given):
        typer.echo(f"wrote {path}")


def check_values(given: dict[str, Any]) -> None:
    """What is wrong for every family."""
    prompt = given.get("prompt")
    if prompt is not None and not prompt.strip():
        raise UserError("--prompt: it is empty")
    if prompt is not None and any("\ud800" <= c <= "\udfff" for c in prompt):
        raise UserError("--prompt: not valid text in this terminal's encoding; write it in UTF-8")
    for kind in ("image", "video"):
        for path in given.get(kind, []):
            if not path.is_file():
                raise UserError(f"--{kind} {path}: no such file")


def check_options(given: dict[str, Any], make: Callable[..., Any], family: str) -> None:
    """The keyword-only parameters of a family's `generate` are the options it takes; those without a default are
    needed. Nothing that was given is ignored."""
    known = {p.name: p for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for name in given:
        if name not in known:
            takes = ", ".join(_typed(other) for other in known)
            what = given[name][0] if name == OVERRIDES else f"--{name}"
            raise UserError(f"{what}: a model of family {family!r} does not take it; it takes {takes}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in given:
            raise UserError(f"--{name}: missing; a model of family {family!r} needs it")


def _typed(name: str) -> str:
    """What a person types for a parameter of `generate`."""
    return "KEY=VALUE" if name == OVERRIDES else f"--{name}"
