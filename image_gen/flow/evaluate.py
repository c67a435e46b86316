"""Metrics of held-out prompts, from pictures of the noiseless sampler.

reward      mean of the weighted total of the run's rewards.
judge       the same of `eval.judges`, which are never trained on; left out when there are none.
NAME        mean of each component, where a total has several (judges as judge/NAME).
diversity   standard deviation of each pixel over the pictures of a prompt, averaged over pixels and prompts; left out
            with one picture a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from image_gen.flow.diversity import pixel_diversity
from mmrl.config import Config, Rewards
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.score import Scorer
from mmrl.training.policy import Policy
from mmrl.training.rollouts import Request, Rollouts


def evaluate(policy: Policy, records: Sequence[Record], config: Config) -> dict[str, float]:
    """The metrics above. Raises UserError without records."""
    return first_look(policy, records, config)[0]


def first_look(policy: Policy, records: Sequence[Record], config: Config) -> tuple[dict[str, float], list[str]]:
    """(the same metrics, what an evaluation like this cannot tell)."""
    if not records:
        raise UserError("data.eval: no records to evaluate; add some")
    images = config.inputs.eval_images
    rollouts = policy.rollout([Request(r, images) for r in records], Streams(config.seed, 0, "eval"), greedy=True)
    metrics = _means(rollouts, config.rewards, "reward")
    told = []
    if config.eval.judges:
        own = Rewards(components=config.eval.judges, on_error=config.rewards.on_error)
        metrics |= _means(rollouts, own, "judge")
    else:
        told.append("no judge: a model is measured by the reward it is trained on alone; name another in eval.judges")
    if images > 1:
        pictures = torch.stack([torch.as_tensor(o) for o in rollouts.outputs])
        metrics["diversity"] = float(pixel_diversity(pictures, rollouts.keys["prompt"]))
    else:
        told.append("diversity is not measured with one picture a prompt; set inputs.eval_images to 2 or more")
    return metrics, told


def _means(rollouts: Rollouts, rewards: Rewards, total: str) -> dict[str, float]:
    with Scorer(rewards, tasks={r.task for r in rollouts.records}) as scorer:
        scored = scorer.score(rollouts.outputs, rollouts.records, rollouts.info)
    found = {total: _mean(scored.reward_n.tolist())}
    if len(scored.names) > 1:
        prefix = "judge/" if total == "judge" else ""
        columns = {name: _mean(scored.reward_nk[:, k].tolist()) for k, name in enumerate(scored.names)}
        found |= {f"{prefix}{name}": value for name, value in columns.items() if math.isfinite(value)}
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
