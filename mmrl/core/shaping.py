"""Changes of the reward before the advantage (stage kind `shape`)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.core.groups import as_float
from mmrl.core.registry import stage


def overlong_penalty(*, length_n: Tensor, max_length: float | Tensor, cache: float | Tensor) -> Tensor:
    """DAPO's soft length penalty (arXiv 2503.14476), in [-1, 0]. [N] -> [N], detached.

    0 up to max_length - cache; ((max_length - cache) - L) / cache up to max_length; -1 above. Lengths in decisions.
    """
    length_n = as_float(length_n)
    free = max_length - cache
    slope = (free - length_n) / cache
    soft = torch.where(length_n <= free, torch.zeros_like(slope), slope)
    return torch.where(length_n > max_length, torch.full_like(soft, -1.0), soft).detach()


@stage("shape", "overlong", when={})
def overlong(
    *,
    reward_n: Tensor,
    length_n: Tensor,
    limit_n: Tensor | None = None,
    max_length: float | None = None,
    cache: float | None = None,
    weight: float = 1.0,
) -> Tensor:
    """reward + weight * overlong_penalty. [N], detached.

    max_length: default the sampler's own limit (`limit_n`). cache: default a fifth of it (the paper's 4096 of 20480).
    """
    length_n = length_n.to(as_float(reward_n).dtype)
    if max_length is not None:
        top = torch.full_like(length_n, max_length)
    elif limit_n is not None:
        top = limit_n.to(length_n.dtype)
    else:
        raise ValueError("overlong: give max_length, or a table with limit_n")
    soft = top / 5 if cache is None else torch.full_like(top, cache)
    return reward_n.detach() + weight * overlong_penalty(length_n=length_n, max_length=top, cache=soft).to(
        reward_n.dtype
    )
