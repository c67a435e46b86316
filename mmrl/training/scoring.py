"""From rollouts to rewards: whole outputs, outputs of single decisions, and rows that cannot be used.

Axes: N rollouts, T decisions, K reward components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mmrl.data.records import Record
from mmrl.rewards.score import Scorer
from mmrl.training.batch import Scored, with_penalties
from mmrl.training.rollouts import Request, Rollouts

#: Rewards of a part of a step, and a line per row that has none although one was asked for.
Told = tuple[Scored, list[str]]


def score(scorer: Scorer, rollouts: Rollouts) -> Told:
    """(rewards of the rows, a line per row without any although one was asked for).

    A row that its policy calls unusable is not shown to the rewards. Where rollouts hold outputs of single decisions
    (`Rollouts.steps`), each of them is scored by the same rewards: `reward_ntk`, NaN where there is nothing to score;
    they are forgotten afterwards, pictures of all steps would fill the memory.
    """
    at = [i for i, info in enumerate(rollouts.info) if "unusable" not in info]
    lines = [
        f"record {rollouts.records[i].id!r}, sample {info['sample']}: {info['unusable']}"
        for i, info in enumerate(rollouts.info)
        if "unusable" in info
    ]
    outputs, records = [rollouts.outputs[i] for i in at], [rollouts.records[i] for i in at]
    result = scorer.score(outputs, records, [rollouts.info[i] for i in at])
    reward_nk = torch.full((len(rollouts), len(result.names)), math.nan, dtype=torch.float64)
    reward_nk[at] = result.reward_nk
    reward_ntk = None
    if rollouts.steps is not None:
        reward_ntk, more = _of_decisions(scorer, rollouts, at, reward_nk)
        result.failures += more
        rollouts.steps = None
    if reward_ntk is not None and any("penalty" in info for info in rollouts.info):
        reward_ntk = torch.nn.functional.pad(reward_ntk, (0, 1), value=math.nan)  # it belongs to rows, not to decisions
    reward_nk, weight_k, names = with_penalties(reward_nk, result.weight_k, result.names, rollouts.info)
    return Scored(rollouts, reward_nk, weight_k, names, reward_ntk), lines + result.failures


def _of_decisions(
    scorer: Scorer, rollouts: Rollouts, rows: Sequence[int], reward_nk: Tensor
) -> tuple[Tensor, list[str]]:
    """float64 [N,T,K]. A decision whose output is the row's own has the row's rewards: no second call."""
    steps = rollouts.steps or []
    reward_ntk = torch.full((len(steps), len(steps[0]), reward_nk.shape[1]), math.nan, dtype=torch.float64)
    cells: list[tuple[int, int]] = []
    for i in rows:
        for t, output in enumerate(steps[i]):
            if output is rollouts.outputs[i]:
                reward_ntk[i, t] = reward_nk[i]
            elif output is not None:
                cells.append((i, t))
    records: list[Record] = [rollouts.records[i] for i, _ in cells]
    info: list[dict[str, Any]] = [{**rollouts.info[i], "decision": t} for i, t in cells]
    found = scorer.score([steps[i][t] for i, t in cells], records, info)
    if cells:
        i_m, t_m = torch.tensor(cells).unbind(1)
        reward_ntk[i_m, t_m] = found.reward_nk
    return reward_ntk, found.failures


class Scoring:
    """Scores the rollouts of a step, in one go or in `parts`: each in a thread while the next is being sampled.

    imitation: the rows are demonstrations, every one of which counts the same.
    """

    def __init__(self, scorer: Scorer, *, parts: int, imitation: bool) -> None:
        self.scorer, self.imitation = scorer, imitation
        self.parts = 1 if imitation else parts
        self._thread: ThreadPoolExecutor | None = None

    def cut(self, requests: list[Request], ranks: int) -> list[list[Request]]:
        """The parts that are sampled one after the other; at least a prompt a rank in each."""
        parts = max(1, min(self.parts, len(requests) // ranks))
        edges = [round(i * len(requests) / parts) for i in range(parts + 1)]
        return [requests[a:b] for a, b in pairwise(edges)]

    def begin(self, rollouts: Rollouts) -> Callable[[], Told]:
        """The rewards, for when they are asked for; beside the sampling their making begins at once."""
        if self.imitation:
            ones = torch.ones(len(rollouts), 1, dtype=torch.float64)
            return lambda: (Scored(rollouts, ones, torch.ones(1).double(), ["imitation"]), [])
        if self.parts < 2:
            return lambda: score(self.scorer, rollouts)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="rewards")
        return self._thread.submit(score, self.scorer, rollouts).result

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self.scorer.close()


def joined(parts: list[Scored]) -> Scored:
    """The parts of a step as one batch; prompts are numbered on."""
    first = 0
    for part in parts:
        prompt_n = part.rollouts.keys["prompt"] + first
        part.rollouts.keys["prompt"] = prompt_n
        first = int(prompt_n.max()) + 1 if len(prompt_n) else first
    return Scored.concat(parts) if len(parts) > 1 else parts[0]
