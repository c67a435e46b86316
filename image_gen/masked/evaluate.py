"""Metrics of held-out prompts: those of both image families, and judge and diversity over the number of decoding steps.

judge@K, diversity@K            `inputs.curve_images` pictures of each prompt in K steps, for each K of
                                `inputs.curve_steps`, with the learned schedule's mean.
base/judge@K, base/diversity@K  the same model with the hand-made schedule.
steps_to_base_quality           see `compared`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from image_gen import evaluate as shared
from mmrl.config import Config
from mmrl.data.records import Record

if TYPE_CHECKING:
    from image_gen.masked.policy import MaskedPolicy

CURVES = ("judge", "diversity")
#: Decoding steps of the start whose judge is the quality to be reached.
BASE_STEPS = 8
REACHED = "steps_to_base_quality"


def evaluate(policy: MaskedPolicy, records: Sequence[Record], config: Config) -> dict[str, float]:
    """The metrics above. Raises UserError without records."""
    return first_look(policy, records, config)[0]


def first_look(policy: MaskedPolicy, records: Sequence[Record], config: Config) -> tuple[dict[str, float], list[str]]:
    """(the same metrics, what an evaluation like this cannot tell)."""
    metrics, told = shared.first_look(policy, records, config)
    if config.inputs.curve_steps and config.inputs.curve_images < 2:
        told.append(
            "diversity over decoding steps is not measured with one picture a prompt; set inputs.curve_images to 2 or "
            "more"
        )
    return metrics | curves(policy, records, config, metrics), told


def curves(
    policy: MaskedPolicy, records: Sequence[Record], config: Config, whole: Mapping[str, float]
) -> dict[str, float]:
    """The metrics with a step count in their name. `whole`: those of the plain evaluation, which are taken where they
    stand for the same pictures. While the mean of the schedule is the hand-made one, one sampling serves both."""
    found: dict[str, float] = {}
    for steps in sorted(set(config.inputs.curve_steps)):
        learned = whole if _same_pictures(policy, config, steps) else _at(policy, records, config, steps, "learned")
        hand_made = learned if policy.schedule.at_base else _at(policy, records, config, steps, "base")
        for prefix, metrics in (("", learned), ("base/", hand_made)):
            found |= {f"{prefix}{name}@{steps}": metrics[name] for name in CURVES if name in metrics}
    return found


def _same_pictures(policy: MaskedPolicy, config: Config, steps: int) -> bool:
    """The plain evaluation drew these."""
    usual = policy.sampling.eval_steps or policy.sampling.steps
    return bool(steps == usual) and config.inputs.curve_images == config.inputs.eval_images


def _at(policy: MaskedPolicy, records: Sequence[Record], config: Config, steps: int, schedule: str) -> dict[str, float]:
    overrides = {"steps": steps, "schedule": schedule}
    return shared.measure(policy, records, config, images=config.inputs.curve_images, sampling=overrides, trained=False)


def compared(
    before: Mapping[str, float], after: Mapping[str, float]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Both evaluations with `steps_to_base_quality`: the smallest step count of the curve whose judge, with the learned
    schedule, is at least the start's at 8 steps; None where none is. Where the curve of the start has no 8, its plain
    `judge` takes that place (at the run's own number of steps). Without a judge or a curve there is no such number.
    """
    wanted = before.get(f"judge@{BASE_STEPS}", before.get("judge"))
    told: list[dict[str, float | None]] = []
    for metrics in (before, after):
        curve = {int(name[6:]): value for name, value in metrics.items() if name.startswith("judge@")}
        own: dict[str, float | None] = {}
        if wanted is not None and curve:
            own[REACHED] = min((steps for steps, value in curve.items() if value >= wanted), default=None)
        told.append({**metrics, **own})
    return told[0], told[1]
