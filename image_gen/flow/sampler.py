"""From noise to latents: the steps of one batch, with what is needed to recompute the likelihood of each trained one.

Axes: n images of a batch, S denoising steps. No gradient anywhere here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from image_gen.flow.steps import Ode, Rule, draw, log_prob, transition
from image_gen.flow.windows import Window

#: (states [n, ...], level or levels [n]) -> velocities [n, ...], guidance included.
Velocity = Callable[[Tensor, float | Tensor], Tensor]


@dataclass
class Trajectory:
    """One image: the states around its trained steps, on the CPU, float32.

    states   step -> the state before it; a trained step s needs s and s + 1.
    means    step -> the mean it was drawn around, where asked for.
    prompt   what it was conditioned on.
    """

    prompt: str
    states: dict[int, Tensor] = field(default_factory=dict)
    means: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Denoised:
    """A batch that reached sigma 0.

    x_n          the last state [n, ...].
    logp_ns      log-probabilities [n, S], NaN where a step is not trained. On the CPU.
    projections  step -> one-step projections x0_hat [n, ...] of the state after it.
    forwards     calls of the velocity.
    """

    x_n: Tensor
    logp_ns: Tensor
    projections: dict[int, Tensor]
    forwards: int


def scored_steps(*, window: Window, every: int = 1) -> tuple[int, ...]:
    """The steps whose projections get a reward: the first stochastic one, then every n-th, and the last. A
    projection is of the state AFTER its step."""
    last = window.steps - 1
    return tuple(s for s in range(window.start, window.steps) if s == window.start or (last - s) % every == 0)


def denoise(
    *,
    x_n: Tensor,
    velocity: Velocity,
    sigmas: Tensor,
    rule: Rule,
    window: Window | None,
    generators: Sequence[torch.Generator],
    rows: Sequence[Trajectory],
    keep_means: bool = False,
    project: Sequence[int] = (),
) -> Denoised:
    """Walk down `sigmas` [S+1] from the noise x_n. `window` None: every step follows the ODE, nothing is recorded.

    project: steps whose next state is projected to sigma 0, x0_hat = x - sigma v, with the velocity that the sampler
    computes anyway: no further forward. The trained steps' states (and means) are written into `rows`.
    """
    steps = len(sigmas) - 1
    sigma_s = [float(s) for s in sigmas]
    logp_ns = torch.full((len(x_n), steps), float("nan"))
    projections: dict[int, Tensor] = {}
    trained = set(window.trained) if window is not None else set()
    stochastic = set(window.stochastic) if window is not None else set()
    for s in range(steps):
        v_n = velocity(x_n, sigma_s[s])
        if s - 1 in project:
            projections[s - 1] = x_n - sigma_s[s] * v_n
        used = rule if s in stochastic else Ode()
        step = transition(rule=used, x_n=x_n, v_n=v_n, sigma=sigma_s[s], sigma_next=sigma_s[s + 1])
        after_n = draw(step=step, generators=generators if s in stochastic else None)
        if s in trained:
            logp_ns[:, s] = log_prob(step=step, x_next_n=after_n).cpu()
            _keep(rows, s, x_n, after_n, step.mean_n if keep_means else None)
        x_n = after_n
    if steps - 1 in project:
        projections[steps - 1] = x_n
    return Denoised(x_n, logp_ns, projections, steps)


def _keep(rows: Sequence[Trajectory], s: int, before_n: Tensor, after_n: Tensor, mean_n: Tensor | None) -> None:
    if any(s not in row.states for row in rows):  # a step right after another trained one has its state already
        _store([row.states for row in rows], s, before_n)
    _store([row.states for row in rows], s + 1, after_n)
    if mean_n is not None:
        _store([row.means for row in rows], s, mean_n)


def _store(tables: Sequence[dict[int, Tensor]], s: int, value_n: Tensor) -> None:
    """A copy for each row, so that a dropped row frees its memory."""
    for table, value in zip(tables, value_n.cpu().unbind(0), strict=True):
        table[s] = value.clone()
