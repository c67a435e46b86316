"""One denoising step as a Gaussian action: its mean, its deviation, and the log-probability of where it went.

The noise level is sigma in [0, 1]: x_sigma = (1 - sigma) x0 + sigma x1 with x1 ~ N(0, I), and the network predicts
v ~ x1 - x0. A step goes from sigma to sigma' < sigma, dt = sigma' - sigma < 0. Every rule's mean is linear in the state
and the velocity, so a rule is four numbers (`Coefficients`) and all else is shared.

    sde     Flow-GRPO (arXiv 2505.05470)              noise: the level a
    cps     coefficients-preserving (2509.05952)      noise: the level a in [0, 1]
    dance   DanceGRPO (2505.07818)                    noise: the constant eta
    ode     the Euler step, for evaluation            no noise, no likelihood

Coefficients are made in float64 and applied in float32 or better, whatever the dtype of the latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from mmrl.core.groups import as_float
from mmrl.errors import UserError, nearest

#: A first level this close to 1 counts as 1.
NEAR_ONE = 1e-3


@dataclass(frozen=True)
class Coefficients:
    """mean = state * x + velocity * v; float64, shaped like sigma. `diffusion` is sigma_t: std without sqrt(-dt)."""

    state: Tensor
    velocity: Tensor
    std: Tensor
    diffusion: Tensor


class Rule(Protocol):
    """`plain_square`: the log-prob is -(x' - mean)^2, without 1 / (2 std^2) and without constants."""

    plain_square: ClassVar[bool]

    def coefficients(self, *, sigma: Tensor, sigma_next: Tensor) -> Coefficients: ...


def _diffuse(sigma: Tensor, dt: Tensor, diffusion: Tensor) -> Coefficients:
    """The SDE with the marginals of the ODE: drift v - sigma_t^2/2 * score, score = -(x + (1 - sigma) v) / sigma."""
    half = diffusion.square() / (2 * sigma)
    return Coefficients(1 + half * dt, (1 + half * (1 - sigma)) * dt, diffusion * (-dt).sqrt(), diffusion)


@dataclass(frozen=True, kw_only=True)
class Sde:
    """Flow-GRPO: sigma_t = a sqrt(sigma / (1 - sigma)); where sigma is 1, s_1 stands in the DENOMINATOR only.

    A table may begin a little below 1 (Sana's at 0.9997): its first level counts as 1 too, the deviation would be huge.
    """

    noise: float
    s_1: float
    plain_square: ClassVar[bool] = False

    def coefficients(self, *, sigma: Tensor, sigma_next: Tensor) -> Coefficients:
        first = (sigma > 1 - NEAR_ONE) & (sigma > self.s_1)
        below_one = torch.where(first, torch.full_like(sigma, self.s_1), sigma)
        return _diffuse(sigma, sigma_next - sigma, self.noise * (sigma / (1 - below_one)).sqrt())


@dataclass(frozen=True, kw_only=True)
class Dance:
    """DanceGRPO: the same SDE with a constant sigma_t = eta."""

    noise: float
    plain_square: ClassVar[bool] = False

    def coefficients(self, *, sigma: Tensor, sigma_next: Tensor) -> Coefficients:
        return _diffuse(sigma, sigma_next - sigma, torch.full_like(sigma, self.noise))


@dataclass(frozen=True, kw_only=True)
class Cps:
    """mean = (1 - sigma') x0_hat + k x1_hat with std = sigma' sin(a pi / 2) and k^2 + std^2 = sigma'^2.

    Its noise does not scale with the step width, so sigma_t is the std itself. It keeps the amounts of data and noise
    in x', not the ODE's marginals: data that vary come out with a smaller deviation when steps are many. The log-prob
    is the bare squared distance, as published: its temperature is not that of the other rules.
    """

    noise: float
    plain_square: ClassVar[bool] = True

    def coefficients(self, *, sigma: Tensor, sigma_next: Tensor) -> Coefficients:
        std = sigma_next * math.sin(self.noise * math.pi / 2)
        k = sigma_next * math.cos(self.noise * math.pi / 2)  # sqrt(sigma'^2 - std^2) without the cancellation
        return Coefficients(1 - sigma_next + k, k * (1 - sigma) - (1 - sigma_next) * sigma, std, std)


@dataclass(frozen=True, kw_only=True)
class Ode:
    """x' = x + dt v."""

    plain_square: ClassVar[bool] = False

    def coefficients(self, *, sigma: Tensor, sigma_next: Tensor) -> Coefficients:
        zero = torch.zeros_like(sigma)
        return Coefficients(torch.ones_like(sigma), sigma_next - sigma, zero, zero)


RULES = ("sde", "cps", "dance", "ode")


def make_rule(*, name: str, noise: float, sigmas: Tensor) -> Rule:
    """The rule `name` for a table of sigmas [S+1] (falling to 0; `sigmas.sigma_table` makes one).

    Raises UserError for an unknown name, a noise level outside the rule's range, or a table that does not fall.
    """
    if name not in RULES:
        raise UserError(f"step rule: unknown rule {name!r}{nearest(name, RULES)}")
    table = sigmas.double()
    if table.dim() != 1 or len(table) < 2 or not bool((table.diff() < 0).all()) or table[0] > 1 or table[-1] != 0:
        raise UserError("sigmas must fall from at most 1 to exactly 0, one number more than there are steps")
    if name == "ode":
        if noise != 0:
            raise UserError(f"step rule ode takes no noise, got {noise}; set noise to 0 or choose sde, cps or dance")
        return Ode()
    if not math.isfinite(noise) or noise < 0 or (name == "cps" and noise > 1):
        raise UserError(
            f"step rule {name}: noise must be {'in [0, 1]' if name == 'cps' else 'at least 0'}, got {noise}"
        )
    if name == "cps":
        return Cps(noise=noise)
    return Sde(noise=noise, s_1=float(table[1])) if name == "sde" else Dance(noise=noise)


@dataclass(frozen=True)
class Transition:
    """N(mean, std^2) over the next state. mean_n [N, ...] carries gradient to the velocity; the others do not.

    std_n and diffusion_n (sigma_t) are [N, 1, ...] and broadcast against the mean; dt_n likewise, negative. noisy_rows:
    how many rows have a deviation above 0, known without a look at the device.
    """

    mean_n: Tensor
    std_n: Tensor
    diffusion_n: Tensor
    dt_n: Tensor
    rule: Rule
    noisy_rows: int

    @property
    def has_density(self) -> bool:
        return self.noisy_rows == len(self.mean_n)


def transition(
    *, rule: Rule, x_n: Tensor, v_n: Tensor, sigma: Tensor | float, sigma_next: Tensor | float
) -> Transition:
    """One step of `rule` from states x_n [N, ...] with velocities v_n [N, ...].

    sigma, sigma_next: a number or one per row [N]; 0 <= sigma_next < sigma <= 1. On the CPU they cost no
    synchronisation. Detached: x_n. Raises ValueError for shapes that differ and for levels out of order.
    """
    if x_n.dim() < 1 or x_n.shape != v_n.shape:
        raise ValueError(f"state and velocity must have one shape [N, ...]; got {list(x_n.shape)}, {list(v_n.shape)}")
    level, after = (torch.as_tensor(s, dtype=torch.float64).detach() for s in (sigma, sigma_next))
    level, after = torch.broadcast_tensors(level, after.to(level.device))
    if level.dim() > 1 or (level.dim() == 1 and len(level) != len(x_n)):
        raise ValueError(f"sigma must be a number or one per row [{len(x_n)}]; got {list(level.shape)}")
    if not bool(((after >= 0) & (after < level) & (level <= 1)).all()):
        raise ValueError(f"a step needs 0 <= sigma_next < sigma <= 1; got {level.tolist()} -> {after.tolist()}")
    c = rule.coefficients(sigma=level, sigma_next=after)
    dtype = torch.promote_types(as_float(x_n).dtype, as_float(v_n).dtype)

    def per_row(number: Tensor) -> Tensor:
        shaped = number.to(device=x_n.device, dtype=dtype).expand(len(x_n))
        return shaped.reshape(-1, *[1] * (x_n.dim() - 1))

    mean_n = per_row(c.state) * x_n.detach().to(dtype) + per_row(c.velocity) * v_n.to(dtype)
    noisy = int((c.std.expand(len(x_n)) > 0).sum())
    return Transition(mean_n, per_row(c.std), per_row(c.diffusion), per_row(after - level), rule, noisy)


def row_mean(value_n: Tensor) -> Tensor:
    """Mean over all but the batch axis. [N, ...] -> [N]"""
    return value_n[:, None].flatten(1).mean(1)


def draw(
    *,
    step: Transition,
    generators: Sequence[torch.Generator] | None = None,
    noise_n: Tensor | None = None,
) -> Tensor:
    """x' = mean + std * eps, detached, in the dtype of the mean. [N, ...]

    eps is `noise_n`, or drawn row by row from `generators` (one a row, on any device), so that a row's path does not
    depend on its neighbours. A step without noise takes neither and draws nothing. Raises ValueError where both or,
    for a noisy step, none is given.
    """
    mean_n = step.mean_n.detach()
    if generators is not None and noise_n is not None:
        raise ValueError("give either generators or noise, not both")
    if step.noisy_rows == 0:
        return mean_n
    if generators is not None:
        if len(generators) != len(mean_n):
            raise ValueError(f"one generator a row: {len(mean_n)} rows, {len(generators)} generators")
        shape, dtype, device = mean_n.shape[1:], mean_n.dtype, mean_n.device
        rows = [torch.randn(shape, generator=g, dtype=dtype, device=g.device).to(device) for g in generators]
        noise_n = torch.stack(rows)
    if noise_n is None:
        raise ValueError("a stochastic step needs generators or noise")
    if noise_n.shape != mean_n.shape:
        raise ValueError(f"noise must have the shape of the state {list(mean_n.shape)}; got {list(noise_n.shape)}")
    return mean_n + step.std_n * noise_n.detach().to(mean_n)


def log_prob(*, step: Transition, x_next_n: Tensor) -> Tensor:
    """MEAN over the elements of the log-probability of x_next_n [N, ...] under the step. [N]

    The mean, not the sum: the joint log-probability is this times the number of elements, hence the tiny clip ranges.
    Gradient through the step's mean only. Detached: x_next_n. Raises ValueError where any deviation is 0 (an ODE step,
    noise 0, or cps at sigma' = 0): such a step has no density.
    """
    if x_next_n.shape != step.mean_n.shape:
        raise ValueError(f"the next state must have shape {list(step.mean_n.shape)}; got {list(x_next_n.shape)}")
    if not step.has_density:
        raise ValueError(
            "a step without noise has no log-probability: take a stochastic rule (sde, cps, dance) with noise above 0 "
            "and leave the last step out of training"
        )
    away_n = x_next_n.detach().to(step.mean_n) - step.mean_n
    if step.rule.plain_square:
        return -row_mean(away_n.square())
    constant_n = row_mean(step.std_n.log()) + 0.5 * math.log(2 * math.pi)
    return -0.5 * row_mean((away_n / step.std_n).square()) - constant_n


def guided_velocity(*, v_cond: Tensor, v_uncond: Tensor, guidance: float, detach_uncond: bool = False) -> Tensor:
    """v = v_u + w (v_c - v_u), float32 or better. Rollout and update must use the SAME w.

    Gradient through both; detach_uncond leaves the unconditional pass out of it.
    """
    if v_cond.shape != v_uncond.shape:
        raise ValueError(f"both velocities need one shape; got {list(v_cond.shape)}, {list(v_uncond.shape)}")
    v_c, v_u = as_float(v_cond), as_float(v_uncond)
    if detach_uncond:
        v_u = v_u.detach()
    return v_u + guidance * (v_c - v_u)
