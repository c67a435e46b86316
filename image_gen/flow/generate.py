"""Pictures of a stored flow-matching model by its noiseless sampler: `mmrl generate` (`image_gen.generating`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from image_gen import generating
from mmrl.config import Config
from mmrl.training.policy import Policy


def generate(
    checkpoint: Path,
    *,
    prompt: str | None = None,
    prompts: Path | None = None,
    n: int = 4,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    compare: str | None = None,
    config: str | None = None,
    base: str | None = None,
    out: Path = Path("generated"),
) -> list[Path]:
    """PNGs, a contact sheet and pictures.json below `out`; returns the files.

    prompt, prompts   one of them: a text, or a file of records.
    steps, guidance   of the noiseless sampler; default the configuration's (sampling.eval_steps, eval_guidance).
    compare           a second model with equal seeds: a folder, a run, a hub id, or `base`.
    base              where the base model of a LoRA is, if not where it was in training.
    """
    resolved = settings(checkpoint, config, base=base)
    _override(resolved, steps=steps, guidance=guidance, height=height, width=width)
    asked = generating.Asked(checkpoint, out, prompt=prompt, prompts=prompts, n=n, seed=seed, compare=compare)
    return generating.draw(asked, resolved, _used)


def settings(checkpoint: Path, config: str | None, *, base: str | None = None) -> Config:
    """The configuration that a checkpoint is asked with."""
    return generating.settings(checkpoint, config, family="flow", recipe="flow-grpo", base=base)


def _override(
    config: Config, *, steps: int | None, guidance: float | None, height: int | None, width: int | None
) -> None:
    if steps is not None:
        config.sampling.eval_steps = steps
    if guidance is not None:
        config.sampling.eval_guidance = guidance
    generating.resize(config, height=height, width=width)


def _used(config: Config, policy: Policy) -> dict[str, Any]:
    own, size = config.sampling, config.inputs
    scale = own.guidance if own.eval_guidance is None else own.eval_guidance
    return {"steps": own.eval_steps, "guidance": scale, "height": size.height, "width": size.width}
