"""VGPO (arXiv 2512.12387): a reward for every denoising step, its discounted value, and a dual advantage.

Official code is not published, and the paper's exact expressions were only partly obtainable. What is a RECONSTRUCTION
says so in its docstring: the placement of omega and of the absolute term, the trajectory as the level of omega's mean,
the values of gamma and k, and eps.

Axes: N images, S denoising steps in sampling order. Everything here is detached and in float32 or better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmrl.core.groups import Groups, as_float

OmegaLevel = Literal["sample", "group"]
Form = Literal["outer", "inner"]

#: A mean value closer to 0 than this gives no temporal weight.
DEGENERATE = 1e-8


def project(*, x_next_n: Tensor, v_next_n: Tensor, sigma_next: Tensor | float) -> Tensor:
    """x0_hat = x_{s+1} - sigma_{s+1} v(x_{s+1}, sigma_{s+1}): where the ODE would land in one step. [N, ...], detached.

    The velocity is the one the sampler computes anyway for the next step. At sigma 0 it is not read (pass the state in
    its place): the projection is the final latent. sigma_next: a number or one per row [N].
    """
    if x_next_n.shape != v_next_n.shape:
        raise ValueError(f"state and velocity need one shape; got {list(x_next_n.shape)}, {list(v_next_n.shape)}")
    x_n, v_n = as_float(x_next_n.detach()), as_float(v_next_n.detach())
    sigma = torch.as_tensor(sigma_next, dtype=torch.float64).detach().to(x_n)
    if sigma.dim():
        sigma = sigma.reshape(-1, *[1] * (x_n.dim() - 1))
    return torch.where(sigma == 0, x_n, x_n - sigma * v_n)


def interpolated(*, value_ns: Tensor, known_s: Tensor) -> Tensor:
    """Unknown columns put on the line between the known ones around them; constant outside. [N, S], detached.

    Own extension, not of the paper: it lets a sampler score every n-th step only. known_s: bool [S], at least one True
    (else ValueError); what stands in the other columns is not read. Exact for rewards that are linear in the step.
    """
    known_s = known_s.bool()
    if known_s.shape != value_ns.shape[1:] or not bool(known_s.any()):
        raise ValueError(f"known_s must be bool [{value_ns.shape[1]}] with at least one True; got {known_s.tolist()}")
    value_ns = as_float(value_ns.detach())
    at = known_s.nonzero()[:, 0]
    step_s = torch.arange(len(known_s), device=at.device)
    after = torch.searchsorted(at, step_s).clamp(max=len(at) - 1)  # the first known step not before s
    before = (torch.searchsorted(at, step_s, right=True) - 1).clamp(min=0)  # the last one not after s
    span_s = (at[after] - at[before]).to(value_ns.dtype)
    share_s = (step_s - at[before]).to(value_ns.dtype) / span_s.clamp(min=1)
    low_ns, high_ns = value_ns[:, at[before]], value_ns[:, at[after]]
    return torch.where(span_s > 0, low_ns + share_s * (high_ns - low_ns), low_ns)


def trusted_rewards(
    *, reward_ns: Tensor, start: int = 0, skip_first: int = 0, scored_s: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rewards without gaps [N, S], and which rows have any reward; bool [N].

    A reward that is not finite is replaced by the mean of the trajectory's finite ones; a row without any is 0 and not
    valid. Steps before `start` (the ODE part before a window) are 0 and do not count. skip_first: the projections of
    steps 0 .. skip_first-1 are too blurry to be scored; they take over the reward of the first trusted step. scored_s:
    bool [S], the steps that were scored at all, default every one; the others are `interpolated`.
    """
    if reward_ns.dim() != 2:
        raise ValueError(f"rewards must be [N, S], got {list(reward_ns.shape)}")
    n_steps = reward_ns.shape[1]
    if not 0 <= start < n_steps or not 0 <= skip_first < n_steps:
        raise ValueError(f"start {start} and skip_first {skip_first} must be steps of 0 .. {n_steps - 1}")
    reward_ns = as_float(reward_ns.detach())
    step_s = torch.arange(n_steps, device=reward_ns.device)
    known_s = step_s >= max(start, skip_first)
    if scored_s is not None:
        known_s = known_s & scored_s.to(known_s.device).bool()
    if not bool(known_s.any()):
        raise ValueError(f"no step from {max(start, skip_first)} on was scored")
    finite_ns = torch.isfinite(reward_ns) & known_s
    count_n = finite_ns.sum(1)
    clean_ns = torch.where(finite_ns, reward_ns, torch.zeros_like(reward_ns))
    mean_n = clean_ns.sum(1) / count_n.clamp(min=1)
    filled_ns = interpolated(value_ns=torch.where(finite_ns, reward_ns, mean_n[:, None]), known_s=known_s)
    return filled_ns.masked_fill(step_s < start, 0.0), count_n > 0


def discounted(*, reward_ns: Tensor, gamma: float = 0.9, start: int = 0) -> Tensor:
    """Q[n, s] = R[n, s] + gamma Q[n, s+1] along one trajectory; 0 before `start`. [N, S], detached.

    RECONSTRUCTION: no source gives gamma; 0.9 is our choice. gamma 0: Q = R. gamma 1 with a reward at the last step
    only: Q is that reward at every step.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be between 0 and 1, got {gamma}")
    reward_ns = as_float(reward_ns.detach())
    value_ns = torch.zeros_like(reward_ns)
    running_n = torch.zeros_like(reward_ns[:, 0])
    for s in range(reward_ns.shape[1] - 1, start - 1, -1):
        running_n = reward_ns[:, s] + gamma * running_n
        value_ns[:, s] = running_n
    return value_ns


def temporal_weight(
    *,
    value_ns: Tensor,
    groups: Groups,
    level: OmegaLevel = "sample",
    start: int = 0,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """omega[n, s] = Q[n, s] / mean over s' >= start of Q[n, s']. [N, S], detached; 1 before `start`.

    1 where that mean is within 1e-8 of 0. clip: limits of omega, for rewards that may be negative (its mean over the
    steps is then no longer 1). RECONSTRUCTION: the sources do not say whether the mean is the trajectory's (`sample`)
    or the group's (`group`: the group-mean Q above and below).
    """
    if level not in ("sample", "group"):
        raise ValueError(f"omega_level must be sample or group, got {level!r}")
    value_ns = as_float(value_ns.detach())
    if level == "group":
        value_ns = torch.stack([groups.mean(column) for column in value_ns.unbind(1)], 1)
    mean_n1 = value_ns[:, start:].mean(1, keepdim=True)
    degenerate = mean_n1.abs() < DEGENERATE
    omega_ns = torch.where(degenerate, torch.ones_like(value_ns), value_ns / mean_n1.masked_fill(degenerate, 1.0))
    if clip is not None:
        if not clip[0] <= clip[1]:
            raise ValueError(f"omega_clip must be two rising numbers, got {list(clip)}")
        omega_ns = omega_ns.clamp(*clip)
    return torch.cat([torch.ones_like(omega_ns[:, :start]), omega_ns[:, start:]], 1)


def relative_part(*, value_ns: Tensor, groups: Groups, eps: float = 1e-4) -> Tensor:
    """(Q - mean_g) / (std_g + eps) at every step, population deviation. [N, S], detached.

    0 where the group's values do not differ, for groups of one and for rows without reward. RECONSTRUCTION: eps.
    """
    value_ns = as_float(value_ns.detach())
    columns = []
    for value_n in value_ns.unbind(1):
        mean_n, std_n = groups.mean_and_std(value_n, ddof=0)
        columns.append(((value_n - mean_n) / (std_n + eps)).masked_fill(groups.flat(value_n) | ~groups.valid_n, 0.0))
    return torch.stack(columns, 1)


def absolute_part(*, value_ns: Tensor, k: float = 0.1, n_abs: int = 5) -> Tensor:
    """k Q[n, s] for the steps s < n_abs (absolute numbers), 0 after. [N, S], detached.

    The paper's alpha = k std_g over its std_g, cancelled: with an eps below, the term would vanish at std_g = 0, where
    it is meant to act. It scales with the reward. RECONSTRUCTION: the placement, and k.
    """
    step_s = torch.arange(value_ns.shape[1], device=value_ns.device)
    value_ns = as_float(value_ns.detach())
    return torch.where(step_s < n_abs, k * value_ns, torch.zeros_like(value_ns))


def combine(*, relative_ns: Tensor, absolute_ns: Tensor, omega_ns: Tensor, form: Form = "outer") -> Tensor:
    """The two parts and the temporal weight as one advantage; replaceable as a whole. [N, S], detached.

    outer   omega * (relative + absolute), the parts made of Q.
    inner   relative + absolute, the parts made of omega * Q already.
    RECONSTRUCTION: both placements.
    """
    if form not in ("outer", "inner"):
        raise ValueError(f"form must be outer or inner, got {form!r}")
    both_ns = relative_ns + absolute_ns
    return (omega_ns * both_ns if form == "outer" else both_ns).detach()


def absolute_share(
    *, relative_ns: Tensor, absolute_ns: Tensor, omega_ns: Tensor, mask_ns: Tensor, form: Form = "outer"
) -> Tensor:
    """Which part of the advantages' mass over the steps of mask_ns [N, S] comes from the absolute term; 0 to 1, []."""
    weight_ns = torch.where(mask_ns.bool(), omega_ns.abs() if form == "outer" else torch.ones_like(omega_ns), 0.0)
    absolute, relative = ((weight_ns * part.abs()).sum() for part in (absolute_ns, relative_ns))
    return absolute / (absolute + relative).clamp(min=torch.finfo(weight_ns.dtype).tiny)


@dataclass(frozen=True)
class Values:
    """All [N, S] but valid_n [N]; rows that are not valid and steps before `start` have advantage and parts 0.

    absolute_share: the part of the advantages' mass that comes from the absolute term, [].
    unguarded: some reward is negative and neither reward_shift nor omega_clip is set, so omega may flip signs.
    """

    advantage_ns: Tensor
    relative_ns: Tensor
    absolute_ns: Tensor
    omega_ns: Tensor
    value_ns: Tensor
    valid_n: Tensor
    absolute_share: Tensor
    unguarded: bool


def vgpo(
    *,
    reward_ns: Tensor,
    key_n: Tensor,
    gamma: float = 0.9,
    k: float = 0.1,
    n_abs: int = 5,
    eps: float = 1e-4,
    omega_level: OmegaLevel = "sample",
    omega_clip: tuple[float, float] | None = None,
    reward_shift: float | None = None,
    form: Form = "outer",
    start: int = 0,
    skip_first: int = 0,
    scored_s: Tensor | None = None,
    combiner: Callable[..., Tensor] = combine,
) -> Values:
    """Rewards of all projections [N, S] and group keys [N] to the dual advantage. Detached.

    reward_shift: a constant taken off every reward first (the smallest reward so far), for rewards that may be
    negative. start: the first stochastic step. scored_s: see `trusted_rewards`. Reduces to: Flow-GRPO's advantage at
    every step with k 0, gamma 1 and a reward at the last step only. RECONSTRUCTION: see `combine`, `temporal_weight`,
    `absolute_part`, `discounted`.
    """
    if len(key_n) != len(reward_ns):
        raise ValueError(f"one key a row: {len(reward_ns)} rows, {len(key_n)} keys")
    reward_ns, valid_n = trusted_rewards(reward_ns=reward_ns, start=start, skip_first=skip_first, scored_s=scored_s)
    counted_ns = valid_n[:, None] & (torch.arange(reward_ns.shape[1], device=reward_ns.device) >= start)
    unguarded = omega_clip is None and reward_shift is None and bool((reward_ns < 0).any())
    reward_ns = torch.where(counted_ns, reward_ns - (reward_shift or 0.0), torch.zeros_like(reward_ns))
    groups = Groups(key_n, valid_n)
    value_ns = discounted(reward_ns=reward_ns, gamma=gamma, start=start)
    omega_ns = temporal_weight(value_ns=value_ns, groups=groups, level=omega_level, start=start, clip=omega_clip)
    base_ns = omega_ns * value_ns if form == "inner" else value_ns
    relative_ns = relative_part(value_ns=base_ns, groups=groups, eps=eps)
    absolute_ns = absolute_part(value_ns=base_ns, k=k, n_abs=n_abs)
    advantage_ns = combiner(relative_ns=relative_ns, absolute_ns=absolute_ns, omega_ns=omega_ns, form=form).detach()
    share = absolute_share(
        relative_ns=relative_ns, absolute_ns=absolute_ns, omega_ns=omega_ns, mask_ns=counted_ns, form=form
    )
    return Values(
        advantage_ns.masked_fill(~counted_ns, 0.0),
        relative_ns,
        absolute_ns,
        omega_ns,
        value_ns,
        valid_n,
        share,
        unguarded,
    )
