"""Pictures of a stored masked-image model: `mmrl generate` (`image_gen.generating`).

Tokens are drawn as in training; the schedule is taken by its mean, so that nothing but the tokens is left to chance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from image_gen import generating
from image_gen.masked.config import Schedule
from image_gen.masked.schedule import beside
from mmrl.config import Config
from mmrl.errors import UserError

#: As `sampling.guidance`, and as learned schedules are cut (`schedule.targets`).
MAX_GUIDANCE = 30.0


def generate(
    checkpoint: Path,
    *,
    prompt: str | None = None,
    prompts: Path | None = None,
    n: int = 4,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    schedule: str = "learned",
    height: int | None = None,
    width: int | None = None,
    compare: str | None = None,
    config: str | None = None,
    base: str | None = None,
    out: Path = Path("generated"),
) -> list[Path]:
    """PNGs, a contact sheet and pictures.json below `out`; returns the files.

    prompt, prompts   one of them: a text, or a file of records.
    steps             decoding steps; default the configuration's (sampling.eval_steps, else sampling.steps).
    guidance          of the hand-made schedule, which the learned one moves from there; default the run's.
    schedule          learned, or base: the hand-made one under the learned.
    compare           a second model with equal seeds: a folder, a run, a hub id, or `base`, which has the hand-made
                      schedule unless a schedule is stored beside it.
    base              where the base model of a LoRA is, if not where it was in training.
    """
    resolved = settings(checkpoint, config, base=base)
    if steps is not None:
        resolved.sampling.eval_steps = steps
    if guidance is not None:
        if guidance > MAX_GUIDANCE:
            raise UserError(f"--guidance {guidance:g}: the sampler of masked images takes at most {MAX_GUIDANCE:g}")
        resolved.sampling.guidance = guidance
    generating.resize(resolved, height=height, width=width)
    asked = generating.Asked(
        checkpoint,
        out,
        prompt=prompt,
        prompts=prompts,
        n=n,
        seed=seed,
        compare=compare,
        sampling={"schedule": schedule},
    )

    return generating.draw(asked, resolved, _used, _keep_its_schedule)


def settings(checkpoint: Path, config: str | None, *, base: str | None = None) -> Config:
    """The configuration that a checkpoint is asked with."""
    return generating.settings(checkpoint, config, family="masked", recipe="co-grpo", base=base)


def _keep_its_schedule(other: Config) -> None:
    """A schedule stored beside the other model is taken as it is, whatever this one's settings are."""
    if (Path(other.model.path) / beside.FOLDER).is_dir():
        other.model.schedule = Schedule()


def _used(config: Config, policy: Any) -> dict[str, Any]:
    own, size = config.sampling, config.inputs
    return {
        "steps": own.eval_steps or own.steps,
        "guidance": policy.model.guidance if own.guidance is None else own.guidance,
        "height": size.height,
        "width": size.width,
    }
