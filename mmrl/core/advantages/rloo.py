"""RLOO: the mean of the other samples as baseline (arXiv 2402.14740)."""

from __future__ import annotations

from torch import Tensor

from mmrl.core.advantages.grpo import Singleton, relative, rewards_and_groups
from mmrl.core.registry import stage


@stage("advantage", "rloo", scope="group", relative=True)
def rloo(*, reward_n: Tensor, keys: dict[str, Tensor], key: str = "prompt", singleton: Singleton = "zero") -> Tensor:
    """A_i = r_i - mean of the other rewards of the group = G/(G-1) (r_i - mean_g). [N], detached.

    singleton `raw` keeps r for a group of one (verl); the default is 0.
    Reduces to: Dr.GRPO up to the factor G/(G-1).
    """
    reward_n, groups = rewards_and_groups(reward_n, keys[key])
    return relative(reward_n - groups.leave_one_out(reward_n), reward_n, groups, singleton)
