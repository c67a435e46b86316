"""Against the running statistics of the row's own prompt, as DDPO does (arXiv 2305.13301)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.core.groups import as_float
from mmrl.core.registry import stage


@stage("advantage", "tracked", signal_without_variance=True)
def tracked(*, reward_n: Tensor, prompt_mean_n: Tensor, prompt_std_n: Tensor, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean_p) / (std_p + eps), over the last rewards of prompt p, this step's included. [N], detached.

    The statistics come from a tracker that lives as long as the run, so a step needs no group: one sample of a prompt
    is enough. eps 1e-6 as in ddpo-pytorch. Rows without reward get 0. Signal without variance: rewards that are equal
    now may differ from those before. Reduces to: GRPO with ddof 0 when the statistics are the group's own.
    """
    reward_n = as_float(reward_n)
    mean_n, std_n = prompt_mean_n.to(reward_n), prompt_std_n.to(reward_n)
    adv_n = (reward_n - mean_n) / (std_n + eps)
    return torch.where(torch.isfinite(reward_n), adv_n, torch.zeros_like(adv_n)).detach()
