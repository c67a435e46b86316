"""Each reward component against its own group, then the sum against the batch: GDPO (arXiv 2601.05242), LightningRL."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmrl.core.advantages.grpo import dr_grpo, grpo, rewards_and_groups
from mmrl.core.advantages.reinforce_pp import masked_whiten
from mmrl.core.groups import FLAT, Groups, as_float, flat_rows
from mmrl.core.registry import stage
from mmrl.errors import UserError, nearest

Mode = Literal["z-score", "centre", "min-max", "signs", "raw"]
Batch = Literal["batch", "tokens", "group", "group-centred", "none"]
MODES = ("z-score", "centre", "min-max", "signs", "raw")
BATCHES = ("batch", "tokens", "group", "group-centred", "none")


def component(reward_n: Tensor, key_n: Tensor, mode: Mode, *, ddof: int, eps: float) -> Tensor:
    """One component in its group; 0 for rows that it does not apply to (NaN). [N] -> [N]

    z-score: (r - mean) / (std + eps), 0 for a deviation of 0. centre: r - mean. min-max: (r - min) / (max - min), 1/2
    in a constant group. signs: 1 for r of at least 1/2, else -1. raw: r.
    """
    if mode == "z-score":
        return grpo(reward_n=reward_n, keys={"own": key_n}, key="own", ddof=ddof, eps=eps)
    if mode == "centre":
        return dr_grpo(reward_n=reward_n, keys={"own": key_n}, key="own")
    reward_n, groups = rewards_and_groups(reward_n, key_n)
    if mode == "min-max":
        low_n, high_n = groups.min(reward_n), groups.max(reward_n)
        value_n = torch.where(
            groups.flat(reward_n), torch.full_like(reward_n, 0.5), (reward_n - low_n) / (high_n - low_n)
        )
    elif mode == "signs":
        value_n = torch.where(reward_n >= 0.5, torch.ones_like(reward_n), -torch.ones_like(reward_n))
    elif mode == "raw":
        value_n = reward_n
    else:
        raise ValueError(f"modes: no mode {mode!r}{nearest(str(mode), MODES)}")
    return value_n.masked_fill(~groups.valid_n, 0.0)


def _over(sum_n: Tensor, groups: Groups, *, ddof: int, eps: float, floor: float) -> Tensor:
    """(S - mean) / (max(std, floor) + eps) over the valid rows of each group; 0 for a deviation of 0."""
    mean_n, std_n = groups.mean_and_std(sum_n, ddof=ddof)
    return ((sum_n - mean_n) / (std_n.clamp(min=floor) + eps)).masked_fill(std_n < FLAT, 0.0)


@stage("advantage", "decoupled", scope="batch", relative=True)
def decoupled(
    *,
    reward_nk: Tensor,
    weight_k: Tensor,
    mask_nt: Tensor,
    keys: dict[str, Tensor],
    key: str = "prompt",
    modes: list[Mode] | None = None,
    ddof: int = 0,
    eps: float = 0.0,
    weighted: bool = True,
    batch: Batch = "batch",
    batch_ddof: int = 1,
    batch_eps: float = 0.0,
    batch_floor: float = 1e-8,
) -> Tensor:
    """S_i = sum_k w_k a_ik, a the component in its group; then S normalised. [N,K] -> [N] ([N,T] for tokens), detached.

    modes: one per component in their order, see `component`; those without one are z-scores. ddof, eps: of the groups.
    weighted: w is the component's weight, else 1 for every component of a weight other than 0.
    batch: (S - mean) / (max(std, batch_floor) + batch_eps) over the `batch`, or over each `group`; `group-centred`: S
    minus the group's mean; `tokens`: S on every decision, whitened over all of them (variance unbiased, 1e-8 under the
    root), so that long rows weigh more; `none`: S.
    A component that does not apply to a row (NaN) adds 0 there and leaves its statistics. Rows without any reward get 0
    and leave the batch's. Groups in which no weighted component differs get exactly 0, also where the mean of the batch
    is not; they count in its statistics.
    LightningRL (arXiv 2603.13319): the defaults. GDPO in TRL: ddof 1, eps 1e-4, batch_eps 1e-4, batch_floor 0; in verl:
    ddof 1, eps 1e-6, batch tokens.
    Reduces to: grpo-per-reward with batch `none`. Raises UserError for more modes than components.
    """
    if batch not in BATCHES:
        raise ValueError(f"batch: no choice {batch!r}{nearest(str(batch), BATCHES)}")
    if isinstance(modes, str) or any(mode not in MODES for mode in modes or ()):
        raise ValueError(f"modes: a list with one of {', '.join(MODES)} per component, got {modes!r}")
    if len(modes or ()) > len(weight_k):
        raise UserError(f"advantage decoupled: {len(modes or ())} modes for {len(weight_k)} reward components")
    chosen: list[Mode] = [*(modes or ()), *(["z-score"] * len(weight_k))]  # type: ignore[list-item]
    reward_nk, key_n = as_float(reward_nk), keys[key]
    sum_n = torch.zeros_like(reward_nk[:, 0])
    for k, weight in enumerate(weight_k.to(reward_nk).unbind()):
        if weight != 0:
            own_n = component(reward_nk[:, k], key_n, chosen[k], ddof=ddof, eps=eps)
            sum_n = sum_n + (weight * own_n if weighted else own_n)
    valid_n = torch.isfinite(reward_nk).any(1)
    silent_n = flat_rows(reward_nk=reward_nk, weight_k=weight_k, key_n=key_n) | ~valid_n
    if batch == "tokens":
        mask = mask_nt.bool() & valid_n[:, None]
        adv_nt = masked_whiten(sum_n[:, None].expand(mask.shape).clone(), mask)
        return adv_nt.masked_fill(silent_n[:, None], 0.0).detach()
    groups = Groups(key_n if batch.startswith("group") else torch.zeros_like(key_n), valid_n)
    if batch == "group-centred":
        sum_n = sum_n - groups.mean(sum_n)
    elif batch != "none":
        sum_n = _over(sum_n, groups, ddof=batch_ddof, eps=batch_eps, floor=batch_floor)
    return sum_n.masked_fill(silent_n, 0.0).detach()
