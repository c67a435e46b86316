"""Stages native to flow-matching image models, registered by name: the gate `grpo-guard` and the advantage `vgpo`.

Axes: N images, T denoising steps (all of them; the mask marks the trained ones), K reward components.
"""

from __future__ import annotations

import torch
from torch import Tensor

from image_gen.flow import values
from image_gen.flow.divergence import corrected
from mmrl.core.gates.ppo_clip import clipped_surrogate
from mmrl.core.groups import as_float, total_reward
from mmrl.core.ratios import clamped, factor, masked_difference
from mmrl.core.registry import stage
from mmrl.errors import UserError


@stage(
    "gate",
    "grpo-guard",
    units=("element-mean",),
    unit_reason="it corrects Gaussian log-probs that are means over elements by the distance of their means",
)
def grpo_guard(
    *,
    logp_nt: Tensor,
    old_logp_nt: Tensor,
    mean_gap_nt: Tensor,
    sigma_nt: Tensor,
    dt_nt: Tensor,
    adv_nt: Tensor,
    mask_nt: Tensor,
    eps_low_nt: Tensor | float = 2e-6,
    eps_high_nt: Tensor | float = 2e-6,
    adv_clip: float | None = None,
    reweight: bool = True,
) -> dict[str, Tensor]:
    """GRPO-Guard (arXiv 2510.22319): clip on rho = exp((logp - old_logp + gap / (2 s^2)) s), s = sigma_t sqrt(-dt).

    loss = -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) / (-dt). All [N,T]. The correction lifts the mean of the
    ratios back to 1 and the factor s gives all steps one spread, so that one width clips both signs and every step
    alike; 1 / (-dt) then gives the steps equal gradients (reweight off: without it). adv_clip: A is clamped first.

    sigma_t and dt are read from the tables, decision by decision. Published code takes their means over the images of a
    step, mean(sigma_t) mean(sqrt(-dt)) and mean(sqrt(-dt))^2 (elsewhere mean(-dt)): the same numbers, as the images of
    a step share one table of sigmas. Gradient through logp and through the gap, as published. Detached: old_logp, A,
    sigma_t, dt, widths. Reduces to: PPO clip with gap 0, sigma_t 1 and dt -1.
    """
    mask = mask_nt.bool()
    use = mask & torch.isfinite(old_logp_nt.detach())
    one = torch.ones_like(logp_nt)
    width_nt = torch.where(mask, -dt_nt.detach().to(logp_nt), one)
    scale_nt = torch.where(mask, sigma_nt.detach().to(logp_nt), one) * width_nt.sqrt()
    log_ratio = corrected(
        log_ratio=masked_difference(logp_nt, old_logp_nt, mask_nt),
        mean_gap=torch.where(use, mean_gap_nt, torch.zeros_like(mean_gap_nt)).to(logp_nt),
        scale=scale_nt,
    )
    adv_nt = factor(adv_nt, mask_nt, adv_clip=adv_clip)
    out = clipped_surrogate(clamped(log_ratio).exp(), adv_nt, eps_low_nt, eps_high_nt)
    return {**out, "loss_nt": out["loss_nt"] / width_nt} if reweight else out


@stage("advantage", "vgpo", scope="group", signal_without_variance=True, relative=True)
def vgpo(
    *,
    reward_ntk: Tensor,
    weight_k: Tensor,
    mask_nt: Tensor,
    scored_nt: Tensor,
    keys: dict[str, Tensor],
    key: str = "prompt",
    gamma: float = 0.9,
    k: float = 0.1,
    n_abs: int = 5,
    eps: float = 1e-4,
    omega_level: values.OmegaLevel = "sample",
    omega_clip: tuple[float, float] | None = None,
    reward_shift: float | None = None,
    form: values.Form = "outer",
    skip_first: int = 0,
) -> dict[str, Tensor]:
    """VGPO (arXiv 2512.12387): discounted values of every step, weighted in time, with an absolute anchor. [N,T].

    R = weighted sum of the components that apply to a step; Q_t = R_t + gamma Q_(t+1); omega = Q / mean over steps of
    Q; A = omega ((Q - mean_g) / (std_g + eps) + k Q where t < n_abs). RECONSTRUCTION: gamma, k, eps, the placement of
    omega and of the absolute term (`form`), the level of omega (`omega_level`); see `image_gen.flow.values`.

    The first step that is scored or trained counts as the first stochastic one. Steps that were not scored are
    interpolated (own extension). Only trained steps get an advantage; the values also read the steps after them. Rows
    without any reward get 0. omega_clip [low, high] or reward_shift (a constant taken off every reward) is wanted for
    rewards that may be negative. For the log: `absolute_share`, the part of the trained advantages' mass from the
    absolute term, and `unguarded_rewards`, the share of scored rewards below 0 while neither guard is set (0
    otherwise). Signal without variance: the absolute term. Detached: everything. Reduces to: GRPO with ddof 0 at every
    trained step with k 0, gamma 1 and a reward at the last step only.
    """
    reward_nt = total_reward(reward_nk=as_float(reward_ntk.detach()), weight_k=weight_k.to(as_float(reward_ntk)))
    mask, scored = mask_nt.bool(), scored_nt.bool()
    _check(skip_first, omega_clip, steps=mask.shape[1])
    began = (scored | mask).any(0).nonzero()[:, 0]
    if not scored.any():
        raise UserError("advantage vgpo: no step was scored; take a sampler that scores its projections")
    got = values.vgpo(
        reward_ns=torch.where(scored, reward_nt, torch.full_like(reward_nt, torch.nan)),
        key_n=keys[key],
        gamma=gamma,
        k=k,
        n_abs=n_abs,
        eps=eps,
        omega_level=omega_level,
        omega_clip=omega_clip,
        reward_shift=reward_shift,
        form=form,
        start=int(began[0]),
        skip_first=skip_first,
        scored_s=scored.any(0),
    )
    share = values.absolute_share(
        relative_ns=got.relative_ns, absolute_ns=got.absolute_ns, omega_ns=got.omega_ns, mask_ns=mask, form=form
    )
    finite = torch.isfinite(reward_nt) & scored
    negative = (finite & (reward_nt < 0)).sum() / finite.sum().clamp(min=1)
    guarded = omega_clip is not None or reward_shift is not None
    return {
        "adv_nt": got.advantage_ns.masked_fill(~mask, 0.0),
        "log/absolute_share": share,
        "log/unguarded_rewards": (torch.zeros_like(negative) if guarded else negative).to(share),
    }


class _BeyondTheTable(UserError, IndexError):
    """A setting that these rollouts are too short for. An IndexError as well: a dry run on two steps proves nothing."""


def _check(skip_first: int, omega_clip: object, *, steps: int) -> None:
    if isinstance(skip_first, bool) or not isinstance(skip_first, int) or skip_first < 0:
        raise ValueError(f"skip_first must be a whole number of at least 0, got {skip_first!r}")
    if skip_first >= steps:
        raise _BeyondTheTable(f"advantage vgpo: skip_first {skip_first} leaves none of the {steps} sampling steps")
    if omega_clip is not None and not (isinstance(omega_clip, (list, tuple)) and len(omega_clip) == 2):
        raise ValueError(f"omega_clip must be two rising numbers, got {omega_clip!r}")
