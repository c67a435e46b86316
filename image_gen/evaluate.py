"""Metrics of held-out prompts, from pictures as the family evaluates: without noise, or by the mean of a schedule.

reward      mean of the weighted total of the run's rewards.
judge       the same of `eval.judges`, which are never trained on; left out when there are none.
NAME        mean of each component, where a total has several (judges as judge/NAME).
unusable    share of pictures whose latents or logits are not finite; they are left out. Only where there are any.
diversity   standard deviation of each pixel over the pictures of a prompt, averaged over pixels and prompts; left out
            with one picture a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from image_gen.diversity import pixel_diversity
from mmrl.config import Config, Rewards
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.score import Scorer
from mmrl.training.policy import Policy
from mmrl.training.rollouts import Request, Rollouts

#: Pictures that are held at once; whole prompts, so that rewards of a group see all of it.
TOGETHER = 256


def evaluate(policy: Policy, records: Sequence[Record], config: Config) -> dict[str, float]:
    """The metrics above. Raises UserError without records."""
    return first_look(policy, records, config)[0]


def first_look(policy: Policy, records: Sequence[Record], config: Config) -> tuple[dict[str, float], list[str]]:
    """(the same metrics, what an evaluation like this cannot tell)."""
    images, told = config.inputs.eval_images, []
    if not config.eval.judges:
        told.append("no judge: a model is measured by the reward it is trained on alone; name another in eval.judges")
    if images < 2:
        told.append("diversity is not measured with one picture a prompt; set inputs.eval_images to 2 or more")
    return measure(policy, records, config, images=images), told


def measure(
    policy: Policy,
    records: Sequence[Record],
    config: Config,
    *,
    images: int,
    sampling: Mapping[str, Any] | None = None,
    trained: bool = True,
) -> dict[str, float]:
    """The metrics above over `images` pictures of each record, of the same random numbers whatever is asked.

    sampling: overrides of the sampling section, where the family takes some. trained: False leaves out the rewards that
    the run trains on; where then nothing is left to measure, nothing is sampled. Raises UserError without records.
    """
    if not records:
        raise UserError("data.eval: no records to evaluate; add some")
    totals = _totals(config, {r.task for r in records}, trained=trained)
    if not totals and images < 2:
        return {}
    diverse: list[float] = []
    unusable = 0
    try:
        for some in _parts(records, max(1, TOGETHER // images)):
            requests = [Request(r, images, sampling=dict(sampling or {})) for r in some]
            rollouts = policy.rollout(requests, Streams(config.seed, 0, "eval"), greedy=True)
            good = rollouts.select([i for i, info in enumerate(rollouts.info) if "unusable" not in info])
            unusable += len(rollouts) - len(good)
            if not len(good):
                continue
            for total in totals:
                total.add(good)
            if images > 1:
                pictures = torch.stack([torch.as_tensor(o) for o in good.outputs])
                keys = good.keys["prompt"]
                diverse += [float(pixel_diversity(pictures, keys))] * len(keys.unique())
    finally:
        for total in totals:
            total.scorer.close()
    metrics = {name: value for total in totals for name, value in total.means().items()}
    if unusable:
        metrics["unusable"] = unusable / (len(records) * images)
    return metrics | ({"diversity": _mean(diverse)} if diverse else {})


def _totals(config: Config, tasks: set[str], *, trained: bool) -> list[_Total]:
    found = [_Total("reward", config.rewards, tasks)] if trained else []
    if config.eval.judges:
        own = Rewards(components=config.eval.judges, on_error=config.rewards.on_error)
        found.append(_Total("judge", own, tasks))
    return found


def _parts(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]


class _Total:
    """Running scores of some rewards: `name` is the weighted total; components stand beside it where it has several."""

    def __init__(self, name: str, rewards: Rewards, tasks: set[str]) -> None:
        self.name, self.scorer = name, Scorer(rewards, tasks=tasks)
        self.totals: list[float] = []
        self.columns: list[list[float]] = [[] for _ in self.scorer.names]

    def add(self, rollouts: Rollouts) -> None:
        scored = self.scorer.score(rollouts.outputs, rollouts.records, rollouts.info)
        self.totals += scored.reward_n.tolist()
        for column, values in zip(self.columns, scored.reward_nk.T.tolist(), strict=True):
            column += values

    def means(self) -> dict[str, float]:
        found = {self.name: _mean(self.totals)}
        if len(self.columns) > 1:
            prefix = "judge/" if self.name == "judge" else ""
            each = {name: _mean(values) for name, values in zip(self.scorer.names, self.columns, strict=True)}
            found |= {f"{prefix}{name}": value for name, value in each.items() if math.isfinite(value)}
        return found


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def scores(outputs: Sequence[Any], records: Sequence[Record], config: Config) -> list[dict[str, float]]:
    """The run's rewards and judges of single pictures, by name; those that do not apply are left out."""
    info = [{"sample": i, "length": 0, "finished": True} for i in range(len(outputs))]
    found: list[dict[str, float]] = [{} for _ in outputs]
    for components in (config.rewards.components, config.eval.judges):
        if not components:
            continue
        with Scorer(Rewards(components=components), tasks={r.task for r in records}) as scorer:
            scored = scorer.score(outputs, records, info)
        for i, row in enumerate(scored.reward_nk.tolist()):
            found[i] |= {n: v for n, v in zip(scored.names, row, strict=True) if math.isfinite(v)}
    return found
