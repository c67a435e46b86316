"""Metrics of held-out records: one completion each, at `sampling.eval_temperature`, decoded as in training.

accuracy     share of records that are right: the reward component with `success` set reaches it.
reward       mean of the weighted total reward (a penalty on truncated samples is not part of it).
tpf          tokens up to and including the end token per denoising forward, mean over records.
finished     share of completions with an end token.
accuracy@x, tpf@x   the same two at confidence threshold x, for each of `inputs.eval_thresholds` (rule threshold).
aup          accuracy under parallelism over these thresholds (`dlm.metrics.aup`), accuracy in %, y_max = the best of
             this curve; curves are compared with a common y_max, as the quickstart does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dlm.metrics import aup
from mmrl.config import Config
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.score import Scorer
from mmrl.training.batch import Scored
from mmrl.training.policy import Policy
from mmrl.training.rollouts import Request, Rollouts


def evaluate(policy: Policy, records: Sequence[Record], config: Config) -> dict[str, float]:
    """The metrics above. Raises UserError without records."""
    if not records:
        raise UserError("data.eval: no records to evaluate; add some")
    with Scorer(config.rewards) as scorer:
        found = _measured(decoded(policy, records, config, {}), scorer)
        curve: list[tuple[float, float]] = []
        for threshold in config.inputs.eval_thresholds:
            overrides = {"rule": "threshold", "threshold": threshold}
            own = _measured(decoded(policy, records, config, overrides), scorer)
            if "accuracy" not in own:
                raise UserError(
                    "inputs.eval_thresholds: accuracy is not known; give one of rewards.components a `success` value"
                )
            curve.append((own["tpf"], 100 * own["accuracy"]))
            found |= {f"{name}@{threshold:g}": own[name] for name in ("accuracy", "tpf")}
    return found | ({"aup": aup(curve)} if curve else {})


def decoded(policy: Policy, records: Sequence[Record], config: Config, overrides: dict[str, Any]) -> Rollouts:
    """One completion per record, in order; `overrides` of the sampling section."""
    requests = [Request(record=r, n=1, sampling=overrides) for r in records]
    return policy.rollout(requests, Streams(config.seed, 0, "eval"), greedy=True)


def _measured(rollouts: Rollouts, scorer: Scorer) -> dict[str, float]:
    told = scorer.score(rollouts.outputs, rollouts.records, rollouts.info)
    scored = Scored(rollouts, told.reward_nk, told.weight_k, told.names, success=scorer.success)
    found = {
        "reward": _mean([r for r in scored.reward_n.tolist() if math.isfinite(r)]),
        "tpf": _mean([row["tpf"] for row in rollouts.info]),
        "finished": _mean([float(row["finished"]) for row in rollouts.info]),
    }
    right_n = scored.correct_n
    return found if right_n is None else {"accuracy": float(right_n.double().mean()), **found}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
