"""From rollouts to the core's table: rewards in, keys and masks in, dropped rows out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmrl.core.groups import flat_rows, total_reward
from mmrl.core.streams import Streams
from mmrl.core.table import Table
from mmrl.training.rollouts import Rollouts

#: A policy that penalises truncated rows says so in `info["penalty"]`; it becomes a reward component of this name.
TRUNCATION = "truncation"


@dataclass
class Scored:
    """Rollouts with their reward components. names[k] labels reward_nk[:, k].

    reward_ntk: rewards of single decisions, NaN where none was scored; None unless the recipe asks for them.
    success: names of the columns that tell whether a row is correct, and the raw value each must reach.
    """

    rollouts: Rollouts
    reward_nk: Tensor
    weight_k: Tensor
    names: list[str]
    reward_ntk: Tensor | None = None
    success: Mapping[str, float] = field(default_factory=dict)

    @property
    def correct_n(self) -> Tensor | None:
        """Rows on which every marked column that applies reaches its value, and at least one applies; bool [N]. None
        where no column is marked."""
        marked = [k for k, name in enumerate(self.names) if name in self.success]
        if not marked:
            return None
        value_nk = self.reward_nk[:, marked]
        least_k = torch.tensor([self.success[self.names[k]] for k in marked], dtype=value_nk.dtype)
        known_nk = torch.isfinite(value_nk)
        return known_nk.any(1) & ((value_nk >= least_k) | ~known_nk).all(1)

    @property
    def reward_n(self) -> Tensor:
        return total_reward(reward_nk=self.reward_nk, weight_k=self.weight_k)

    def flat_n(self) -> Tensor:
        """Rows whose group has no variance in any component (on raw rewards)."""
        return flat_rows(reward_nk=self.reward_nk, weight_k=self.weight_k, key_n=self.rollouts.keys["prompt"])

    def select(self, index: Tensor) -> Scored:
        dense = None if self.reward_ntk is None else self.reward_ntk[index]
        cut = self.rollouts.select(index)
        return replace(self, rollouts=cut, reward_nk=self.reward_nk[index], reward_ntk=dense)

    @staticmethod
    def concat(parts: list[Scored]) -> Scored:
        first = parts[0]
        rollouts = Rollouts.concat([p.rollouts for p in parts])
        dense = [p.reward_ntk for p in parts if p.reward_ntk is not None]
        reward_nk = torch.cat([p.reward_nk for p in parts])
        return replace(first, rollouts=rollouts, reward_nk=reward_nk, reward_ntk=torch.cat(dense) if dense else None)


def with_penalties(reward_nk: Tensor, weight_k: Tensor, names: list[str], info: list[dict[str, Any]]) -> Any:
    """Append the truncation column when a row carries a penalty."""
    if not any("penalty" in row for row in info):
        return reward_nk, weight_k, names
    column = torch.tensor([[float(row.get("penalty", 0.0))] for row in info], dtype=reward_nk.dtype)
    one = torch.ones(1, dtype=weight_k.dtype)
    return torch.cat([reward_nk, column], 1), torch.cat([weight_k, one]), [*names, TRUNCATION]


def shuffle_inside_groups(scored: Scored, streams: Streams) -> Scored:
    """The control: each group's reward rows are permuted, so rewards say nothing about the samples. A row of rewards
    per decision moves as a whole."""
    order = torch.arange(len(scored.reward_nk))
    prompt_n = scored.rollouts.keys["prompt"]
    for prompt in torch.unique(prompt_n).tolist():
        rows = (prompt_n == prompt).nonzero()[:, 0]
        generator = streams.generator(scored.rollouts.records[int(rows[0])].id, prompt, use="shuffled-control")
        order[rows] = rows[torch.randperm(len(rows), generator=generator)]
    dense = None if scored.reward_ntk is None else scored.reward_ntk[order]
    return replace(scored, reward_nk=scored.reward_nk[order], reward_ntk=dense)


def table_of(scored: Scored, channel: str) -> Table:
    """Channels that are known once rewards are: rewards, keys, masks, lengths, sampler log-probs."""
    rollouts = scored.rollouts
    tables = dict(rollouts.tables[channel])
    # a behaviour log-prob that is not finite cannot be compared with: that decision leaves mask and counts
    if "sampler_logp_nt" in tables:
        tables["mask_nt"] = tables["mask_nt"].bool() & torch.isfinite(tables["sampler_logp_nt"])
    rows: dict[str, Tensor] = {
        "length_n": torch.tensor([row["length"] for row in rollouts.info]),
        "finished_n": torch.tensor([bool(row["finished"]) for row in rollouts.info]),
    }
    if all("limit" in row for row in rollouts.info):
        rows["limit_n"] = torch.tensor([row["limit"] for row in rollouts.info])
    rewards = {"reward_nk": scored.reward_nk, "weight_k": scored.weight_k, "reward_n": scored.reward_n}
    if scored.reward_ntk is not None:
        rewards["reward_ntk"] = scored.reward_ntk
    if (correct_n := scored.correct_n) is not None:
        rewards["correct_n"] = correct_n
    return Table({**tables, **rows, **rewards}, rollouts.keys, rollouts.segments.get(channel, {}))


def minibatches(prompt_n: Tensor, count: int) -> list[Tensor]:
    """Row indices of `count` minibatches of whole groups, in order; fewer when there are fewer groups."""
    prompts = torch.unique(prompt_n)
    return [torch.isin(prompt_n, part).nonzero()[:, 0] for part in prompts.chunk(min(count, len(prompts)))]
