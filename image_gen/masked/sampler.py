"""From an open canvas to a whole one: the steps of one batch, with what is needed to recompute its likelihood.

Axes: n rows, L positions, K ids of the codebook, T steps, V = 4 schedule variables. No gradient anywhere here.

A row's noise is its own generator's. At each step, after the actor has acted, it gives L uniform numbers for the ids,
then, except at the last step, L more for the confidence: always for all positions, also where nothing is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from image_gen.masked import steps as rules

#: tempered: what is kept is decided by the probabilities that were sampled from; untempered: by those at temperature 1.
Confidence = Literal["tempered", "untempered"]
#: Probabilities that exist at once (float64 sums of 128 MiB).
AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Halves:
    """Logits of one step, [n, L, K] each; `uncond_nlk` None where guidance is 1 for every row."""

    cond_nlk: Tensor
    uncond_nlk: Tensor | None = None
    features_nld: Tensor | None = None


class Network(Protocol):
    def __call__(self, ids_nl: Tensor, *, both: bool, features: bool) -> Halves:
        """Predict on canvases (mask id where open). both: the unconditional half as well."""


class Actor(Protocol):
    """Chooses the schedule values of each step (`image_gen.masked.schedule.acting`)."""

    reads_features: bool

    def both(self, step: int) -> bool:
        """Guidance may differ from 1 at this step."""

    def act(self, step: int, *, n: int, features_nld: Tensor | None) -> tuple[Tensor, Tensor]:
        """(raw actions [n, V], values [n, V] = ratio, re-mask temperature, sample temperature, guidance), float32."""


@dataclass
class Decoded:
    """A batch of whole canvases. All on the CPU.

    ids_nl      int64 [n, L], all in the codebook; given positions as they were.
    steps_nl    int64 [n, L], their step map (`mmrl.masked.steps`): -1 = given.
    logp_nl     log-prob of each token at the step that filled it for good, 0 at given positions; float32, or float64
                from logits in float64.
    raw_ntv     float32 [n, T, V], actions of the schedule; value_ntv: the values they stand for.
    forwards    calls of the transformer; a call on both halves counts twice.
    finite_n    bool [n]. False: logits (or schedule values) of the row were NaN or infinite at some step. What was
                open then holds id 0 with log-prob 0 and that step, and later actions are 0: not to be trained on.
    """

    ids_nl: Tensor
    steps_nl: Tensor
    logp_nl: Tensor
    raw_ntv: Tensor
    value_ntv: Tensor
    forwards: int
    finite_n: Tensor


@torch.no_grad()
def decode(
    *,
    canvas_nl: Tensor,
    steps: int,
    network: Network,
    actor: Actor,
    mask_id: int,
    generators: Sequence[torch.Generator],
    confidence: Confidence = "tempered",
) -> Decoded:
    """Fill the open positions (mask_id) of `canvas_nl`, int64 [n, L], in `steps` steps.

    One generator on the CPU a row: the row's numbers depend on it alone, not on the batch. Given positions never
    change; the share of masks counts from all L. With the values of AmusedScheduler's table, the choice given the same
    random numbers is that of `AmusedScheduler.step`. A row whose logits are not finite is filled up and told in
    `finite_n`; the others go on.

    Raises ValueError for a canvas, mask id or number of generators that do not fit, and for an actor whose guidance is
    not 1 where it asked for one half.
    """
    _check(canvas_nl, steps, generators, confidence)
    state = _State.of(canvas_nl, mask_id)
    raws, values, forwards = [], [], 0
    for t in range(steps):
        halves = network(state.ids_nl, both=actor.both(t), features=actor.reads_features)
        forwards += 1 if halves.uncond_nlk is None else 2
        if t == 0:
            _check_codebook(canvas_nl, halves.cond_nlk, mask_id)
        raw_nv, value_nv = _act(actor, t, halves, state)
        raws.append(raw_nv)
        values.append(value_nv)
        open_nl = state.ids_nl == mask_id
        uniform_nl = rules.uniforms(generators, canvas_nl.shape[1])
        drawn = _draw(halves, open_nl, uniform_nl, value_nv=value_nv, confidence=confidence)
        again_nl = torch.zeros_like(open_nl)
        if t < steps - 1:
            uniform_nl = rules.uniforms(generators, canvas_nl.shape[1])
            again_nl = _remask(drawn.score_nl, open_nl, uniform_nl, value_nv=value_nv)
        state.fill(t, drawn, open_nl, again_nl)
    return Decoded(
        state.ids_nl.cpu(),
        state.steps_nl.cpu(),
        state.logp_nl.to(drawn.logp_nl.dtype).cpu(),
        torch.stack(raws, 1).cpu(),
        torch.stack(values, 1).cpu(),
        forwards,
        state.finite_n.cpu(),
    )


@dataclass(frozen=True)
class _Drawn:
    """[n, L], 0 where nothing is open. logp_nl: of the ids, as sampled from; score_nl: what the confidence takes."""

    ids_nl: Tensor
    logp_nl: Tensor
    score_nl: Tensor


@dataclass
class _State:
    """The canvases between two steps, on the device; axes and meaning as in `Decoded`."""

    ids_nl: Tensor
    steps_nl: Tensor
    logp_nl: Tensor
    finite_n: Tensor

    @classmethod
    def of(cls, canvas_nl: Tensor, mask_id: int) -> _State:
        logp_nl = torch.zeros_like(canvas_nl, dtype=torch.float64)
        finite_n = torch.ones(len(canvas_nl), dtype=torch.bool, device=canvas_nl.device)
        return cls(canvas_nl.clone(), torch.full_like(canvas_nl, -1), logp_nl, finite_n)

    def fill(self, t: int, drawn: _Drawn, open_nl: Tensor, again_nl: Tensor) -> None:
        """Step t drew at open_nl and takes again_nl back. A row that is not finite is filled up with id 0."""
        self.finite_n = self.finite_n & (drawn.logp_nl.isfinite() | ~open_nl).all(1)
        good = self.finite_n[:, None]
        filled_nl = open_nl & ~(again_nl & good)
        self.ids_nl = torch.where(filled_nl, torch.where(good, drawn.ids_nl, 0), self.ids_nl)
        self.logp_nl = torch.where(filled_nl & good, drawn.logp_nl.double(), self.logp_nl)
        self.steps_nl = torch.where(filled_nl, t, self.steps_nl)


def _act(actor: Actor, t: int, halves: Halves, state: _State) -> tuple[Tensor, Tensor]:
    """(raw actions, values) [n, V], on the device; 0 in rows that are not finite."""
    found = actor.act(t, n=len(state.ids_nl), features_nld=halves.features_nld)
    raw_nv, value_nv = (x.to(state.ids_nl.device, torch.float32) for x in found)
    state.finite_n = state.finite_n & raw_nv.isfinite().all(1) & value_nv.isfinite().all(1)
    good = state.finite_n[:, None]
    if halves.uncond_nlk is None and bool((good & (value_nv[:, 3:] != 1)).any()):
        raise ValueError(f"guidance differs from 1 at step {t}, for which the actor asked for one half only")
    return torch.where(good, raw_nv, 0.0), torch.where(good, value_nv, 0.0)


def _draw(halves: Halves, open_nl: Tensor, uniform_nl: Tensor, *, value_nv: Tensor, confidence: Confidence) -> _Drawn:
    """Ids at open positions only, a bounded number of probabilities at a time."""
    _, _, sample_n, guidance_n = value_nv.unbind(1)
    uniform_nl = uniform_nl.to(open_nl.device)
    ids_nl = torch.zeros(open_nl.shape, dtype=torch.int64, device=open_nl.device)
    logp_nl = torch.zeros_like(ids_nl, dtype=torch.promote_types(halves.cond_nlk.dtype, torch.float32))
    score_nl = torch.zeros_like(logp_nl)
    rows, columns = open_nl.nonzero(as_tuple=True)
    size = max(1, AT_ONCE // halves.cond_nlk.shape[-1])
    for start in range(0, len(rows), size):
        row, at = rows[start : start + size], columns[start : start + size]
        uncond = None if halves.uncond_nlk is None else halves.uncond_nlk[row, at]
        logits = rules.guided_logits(halves.cond_nlk[row, at], uncond, guidance_n[row])
        logp = rules.token_log_probs(logits, sample_n[row])
        ids = rules.draw_ids(logp, uniform_nl[row, at])
        ids_nl[row, at] = ids
        logp_nl[row, at] = rules.picked(logp, ids)
        if confidence == "untempered":
            logp = rules.token_log_probs(logits, 1.0)
        score_nl[row, at] = rules.picked(logp, ids)
    return _Drawn(ids_nl, logp_nl, score_nl)


def _remask(score_nl: Tensor, open_nl: Tensor, uniform_nl: Tensor, *, value_nv: Tensor) -> Tensor:
    """What of open_nl is masked again, bool [n, L]."""
    ratio_n, remask_n, _, _ = value_nv.unbind(1)
    noise_nl = rules.gumbel(uniform_nl).to(open_nl.device)
    score_nl = rules.confidence(score_nl, noise_nl, temperature_n=remask_n, known_nl=~open_nl)
    left_n = rules.masks_left(ratio_n, length=open_nl.shape[1], open_n=open_nl.sum(1), last=False)
    return rules.remasked(score_nl, left_n)


def _check(canvas_nl: Tensor, steps: int, generators: Sequence[torch.Generator], confidence: str) -> None:
    if canvas_nl.ndim != 2 or canvas_nl.dtype != torch.int64 or 0 in canvas_nl.shape:
        raise ValueError(f"canvases are int64 [n, L], not empty; got {canvas_nl.dtype} {tuple(canvas_nl.shape)}")
    if steps < 1:
        raise ValueError(f"a canvas is decoded in at least 1 step, got {steps}")
    if len(generators) != len(canvas_nl):
        raise ValueError(f"one generator a row: got {len(generators)} for {len(canvas_nl)} rows")
    if confidence not in ("tempered", "untempered"):
        raise ValueError(f"confidence is tempered or untempered, got {confidence!r}")


def _check_codebook(canvas_nl: Tensor, logits_nlk: Tensor, mask_id: int) -> None:
    """The network predicts every position, the mask is no id that it can draw, what is given is one."""
    if logits_nlk.shape[:2] != canvas_nl.shape:
        raise ValueError(f"logits {tuple(logits_nlk.shape)} do not fit canvases {tuple(canvas_nl.shape)}")
    size = logits_nlk.shape[-1]
    if mask_id < size:
        raise ValueError(f"mask id {mask_id} lies in the codebook of {size} ids: cut the logits to the codebook")
    wrong = (canvas_nl != mask_id) & ((canvas_nl < 0) | (canvas_nl >= size))
    if bool(wrong.any()):
        row, at = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(f"row {row}, position {at} holds id {int(canvas_nl[row, at])}, outside the codebook of {size}")
