"""Group-normalised advantages: GRPO (arXiv 2402.03300), Dr.GRPO (2503.20783), batch-scaled GRPO (as in TRL)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mmrl.core.groups import FLAT, Groups, as_float
from mmrl.core.registry import stage

Singleton = Literal["zero", "raw"]


def relative(adv_n: Tensor, reward_n: Tensor, groups: Groups, singleton: Singleton) -> Tensor:
    """What every relative advantage shares: 0 for rows without reward and for flat groups; groups of one by rule."""
    if singleton not in ("zero", "raw"):
        raise ValueError(f"singleton must be 'zero' or 'raw', got {singleton!r}")
    adv_n = adv_n.masked_fill(groups.flat(reward_n), 0.0)
    if singleton == "raw":
        adv_n = torch.where(groups.count() == 1, reward_n, adv_n)
    return (adv_n if groups.all_valid else adv_n.masked_fill(~groups.valid_n, 0.0)).detach()


def rewards_and_groups(reward_n: Tensor, key_n: Tensor) -> tuple[Tensor, Groups]:
    """Rewards in float32 or better with NaN replaced by 0, and groups whose statistics leave the NaN rows out."""
    reward_n = as_float(reward_n)
    finite = math.isfinite(float(reward_n.detach().sum()))  # the usual case needs no table
    groups = Groups(key_n, None if finite else torch.isfinite(reward_n))
    return reward_n if groups.all_valid else reward_n.masked_fill(~groups.valid_n, 0.0), groups


@stage("advantage", "grpo", scope="group", relative=True)
def grpo(
    *,
    reward_n: Tensor,
    keys: dict[str, Tensor],
    key: str = "prompt",
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> Tensor:
    """A_i = (r_i - mean_g) / (std_g + eps). [N] -> [N], detached.

    key: groups by `keys[key]`. ddof 1 is the unbiased deviation (verl, TRL), 0 the population one. eps 1e-6 as in verl;
    TRL and Visual-RFT use 1e-4. singleton: a group of one has no deviation; `zero` gives 0, `raw` gives r (verl).
    Reduces to: Dr.GRPO when the deviation is 1 and eps is 0.
    """
    reward_n, groups = rewards_and_groups(reward_n, keys[key])
    mean_n, std_n = groups.mean_and_std(reward_n, ddof=ddof)
    adv_n = (reward_n - mean_n) / (std_n + eps)
    return relative(adv_n.masked_fill_(std_n < FLAT, 0.0), reward_n, groups, singleton)


@stage("advantage", "dr-grpo", scope="group", relative=True)
def dr_grpo(*, reward_n: Tensor, keys: dict[str, Tensor], key: str = "prompt", singleton: Singleton = "zero") -> Tensor:
    """A_i = r_i - mean_g: the deviation would over-weight very easy and very hard prompts. [N], detached."""
    reward_n, groups = rewards_and_groups(reward_n, keys[key])
    return relative(reward_n - groups.mean(reward_n), reward_n, groups, singleton)


@stage("advantage", "batch-std", scope="batch", relative=True)
def batch_std(
    *,
    reward_n: Tensor,
    keys: dict[str, Tensor],
    key: str = "prompt",
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> Tensor:
    """A_i = (r_i - mean_g) / (std over ALL rows + eps). [N], detached.

    Reduces to: GRPO when the batch is one group. Flow-GRPO's `global_std` is this with ddof 0, eps 1e-4.
    """
    reward_n, groups = rewards_and_groups(reward_n, keys[key])
    whole = Groups(torch.zeros_like(keys[key]), groups.valid_n)
    adv_n = (reward_n - groups.mean(reward_n)) / (whole.std(reward_n, ddof=ddof) + eps)
    return relative(adv_n, reward_n, groups, singleton)


@stage("advantage", "grpo-per-reward", scope="group", relative=True)
def grpo_per_reward(
    *,
    reward_nk: Tensor,
    weight_k: Tensor,
    keys: dict[str, Tensor],
    key: str = "prompt",
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> Tensor:
    """A_i = sum_k w_k (r_ik - mean_gk) / (std_gk + eps): each component against its own group. [N,K] -> [N], detached.

    The weights then act on comparable numbers, whatever the scale of a component (MixGRPO's `advantage_aggr`). A
    component that does not apply to a row adds 0 there and leaves the component's statistics.
    Reduces to: GRPO with one component of weight 1.
    """
    adv_n = torch.zeros_like(as_float(reward_nk[:, 0]))
    for k in range(len(weight_k)):
        own_n = grpo(reward_n=reward_nk[:, k], keys=keys, key=key, ddof=ddof, eps=eps, singleton=singleton)
        adv_n = adv_n + weight_k[k].to(own_n) * own_n
    return adv_n.detach()
