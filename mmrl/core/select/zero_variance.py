"""Leave out rows whose group carries no relative signal."""

from __future__ import annotations

from torch import Tensor

from mmrl.core.groups import flat_rows
from mmrl.core.registry import stage


@stage("select", "zero-variance", scope="group")
def zero_variance(*, reward_nk: Tensor, weight_k: Tensor, keys: dict[str, Tensor], key: str = "prompt") -> Tensor:
    """keep_n: False where every weighted component is constant in the group (within 1e-8, on raw rewards). bool [N]."""
    return ~flat_rows(reward_nk=reward_nk, weight_k=weight_k, key_n=keys[key])
