"""Imitation of the batch's own right answers."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.core.registry import stage


@stage("penalty", "nll")
def nll(*, logp_nt: Tensor, mask_nt: Tensor, correct_n: Tensor) -> Tensor:
    """-logp on the decisions of rows whose answer is right, 0 elsewhere. [N,T], carries gradient.

    LightningRL's anchor (arXiv 2603.13319); reduce it with token-mean-correct, the mean over the decisions of right
    rows. `correct_n` comes from the reward component marked with `success`, never from advantages or summed rewards:
    those call a fast wrong answer good. Reduces to: REINFORCE with A = 1 on right rows and 0 on the others.
    """
    use = mask_nt.bool() & correct_n.bool()[:, None]
    return -torch.where(use, logp_nt, torch.zeros_like(logp_nt))
