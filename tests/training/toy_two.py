"""A policy of two channels, small enough to check by hand: tokens filled in steps, and a real action before each step.

Every row fills LENGTH positions in T steps. Before every step but the last an action u is drawn; it sets the
temperature of the tokens of its step and how many are kept. Tokens depend on what earlier steps filled, so each step is
a forward of its own (a piece).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.selection.request import Request
from mmrl.training.policy import Bundle, Needs, Piece, Policy, Scope
from mmrl.training.rollouts import Rollouts

VOCAB, LENGTH = 5, 8
BASE = math.log(math.e - 1)  # softplus(BASE) = 1: the temperature of action 0


@dataclass
class Decoded:
    """ids, steps: int64 [LENGTH]; raw: [T-1] actions, drawn with this deviation."""

    x: Tensor
    ids: Tensor
    steps: Tensor
    raw: Tensor
    deviation: float


class TwoChannels(Policy):
    """cut: steps (a piece is one step of up to 4 rows) | rows | columns (3 positions: these cut steps) | whole."""

    channels = ("tokens", "schedule")
    provides = frozenset({"logp_nt", "entropy_nt", "kl_nt"})
    segments = frozenset({"step"})
    densities = frozenset({"schedule"})

    def __init__(
        self,
        *,
        cut: str = "steps",
        every: int = 2,
        explore: bool = True,
        steps: int = 3,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def made(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype) * 0.3)

        self.shared, self.own, self.mix = made(3, VOCAB), made(LENGTH, VOCAB), made(VOCAB, VOCAB)
        self.mean = torch.nn.Parameter(torch.zeros(steps - 1, dtype=dtype))
        self.cut, self.every, self.explore, self.steps, self.dtype = cut, every, explore, steps, dtype
        self.updates = 0
        self.kept: list[Tensor] | None = None
        self.kept_for: list[str] = []

    @classmethod
    def offers(cls, channel: str) -> frozenset[str]:
        return cls.provides if channel == "schedule" else cls.provides - {"kl_nt"}

    @property
    def deviation(self) -> float:
        return max(0.1, 0.6 - 0.3 * (self.updates // self.every))

    # ---- sampling
    def _logits(self, x_nd: Tensor, ids_nl: Tensor, filled_nl: Tensor) -> Tensor:
        seen = F.one_hot(ids_nl, VOCAB).to(self.dtype) * filled_nl[..., None]
        return (x_nd @ self.shared)[:, None] + self.own + (seen.sum(1) / LENGTH @ self.mix)[:, None]

    def _temperature(self, raw_nt: Tensor, step: int) -> Tensor:
        """[n, 1, 1]; the last step has no action."""
        raw_n = raw_nt[:, step] if step < self.steps - 1 else raw_nt.new_zeros(len(raw_nt))
        return F.softplus(raw_n + BASE).clamp(min=1e-3)[:, None, None]

    @torch.no_grad()
    def _decode(self, record: Record, generator: torch.Generator, *, explore: bool) -> tuple[Decoded, Tensor]:
        x = torch.tensor(record.meta["x"], dtype=self.dtype)
        noise = torch.randn(self.steps - 1, generator=generator, dtype=self.dtype)
        raw = self.mean + self.deviation * noise if explore else self.mean.detach().clone()
        ids, steps = torch.zeros(LENGTH, dtype=torch.long), torch.full((LENGTH,), -1)
        logp = torch.zeros(LENGTH, dtype=self.dtype)
        order = torch.randperm(LENGTH, generator=generator)
        for t in range(self.steps):
            left = [int(i) for i in order if steps[i] < 0]
            share = 1.0 if t == self.steps - 1 else float(torch.sigmoid(raw[t])) / (self.steps - 1)
            now = torch.tensor(left[: max(1, round(share * len(left)))], dtype=torch.long)
            table = self._logits(x[None], ids[None], (steps >= 0)[None]) / self._temperature(raw[None], t)
            table = table[0].log_softmax(-1)
            drawn = torch.multinomial(table.exp(), 1, generator=generator)[:, 0]
            ids[now], steps[now] = drawn[now], t
            logp[now] = table[now, drawn[now]]
        return Decoded(x, ids, steps, raw, self.deviation), logp

    def rollout(self, requests: Sequence[Request], streams: Streams, *, greedy: bool = False) -> Rollouts:
        rows, records, info, prompts, logps = [], [], [], [], []
        for b, request in enumerate(requests):
            for j in range(request.first_sample, request.first_sample + request.n):
                generator = streams.generator(request.record.id, j)
                row, logp = self._decode(request.record, generator, explore=self.explore and not greedy)
                rows.append(row)
                logps.append(logp)
                records.append(request.record)
                info.append({"length": self.steps, "finished": True, "sample": j, "limit": self.steps})
                prompts.append(b)
        raw = torch.stack([r.raw for r in rows])
        tables = {
            "tokens": {
                "mask_nt": torch.ones(len(rows), LENGTH, dtype=torch.bool),
                "sampler_logp_nt": torch.stack(logps),
            },
            "schedule": {
                "mask_nt": torch.ones(len(rows), self.steps - 1, dtype=torch.bool),
                "sampler_logp_nt": self._density(raw, self.mean.detach(), rows),
            },
        }
        segments = {
            "tokens": {"step": torch.stack([r.steps for r in rows])},
            "schedule": {"step": torch.arange(self.steps - 1).expand(len(rows), -1).clone()},
        }
        outputs = ["".join(str(int(v)) for v in r.ids) for r in rows]
        keys = {"prompt": torch.tensor(prompts)}
        return Rollouts(rows, records, outputs, info, keys, tables, segments)

    def demonstrations(self, records: Sequence[Record], streams: Streams) -> Rollouts:
        raise NotImplementedError

    # ---- likelihood
    def bundles(self, rollouts: Rollouts, *, channel: str, update: int, scope: Scope) -> list[Bundle]:
        index = torch.arange(len(rollouts))
        if channel == "schedule" or self.cut == "whole":
            parts = [index] if self.cut == "whole" else list(index.split(4))
            return [Bundle([Piece(p, data=(channel, rollouts)) for p in parts])]
        data = ("tokens", rollouts)
        if self.cut == "rows":
            return [Bundle([Piece(p, data=data) for p in index.split(4)])]
        if self.cut == "columns":
            return [Bundle([Piece(index, c, data) for c in torch.arange(LENGTH).split(3)])]
        pieces = []
        for rows in index.split(4):
            steps = torch.stack([rollouts.rows[int(i)].steps for i in rows])
            pieces += [Piece(rows, data=data, own=steps == t) for t in range(self.steps)]
        return [Bundle(pieces)]

    def evaluate(self, piece: Piece, shared: Any, needs: Needs) -> dict[str, Tensor]:
        channel, rollouts = piece.data
        rows = [rollouts.rows[int(i)] for i in piece.rows]
        tables = self._actions(rows) if channel == "schedule" else self._tokens(rows, piece)
        return {k: v for k, v in tables.items() if k in needs.channels}

    def _tokens(self, rows: list[Decoded], piece: Piece) -> dict[str, Tensor]:
        x, ids, steps, raw = (torch.stack([getattr(r, k) for r in rows]) for k in ("x", "ids", "steps", "raw"))
        logp, entropy = torch.zeros(ids.shape, dtype=self.dtype), torch.zeros(ids.shape, dtype=self.dtype)
        for t in range(self.steps):
            now = steps == t if piece.own is None else (steps == t) & piece.own
            if not now.any():
                continue
            table = (self._logits(x, ids, steps < t) / self._temperature(raw, t)).log_softmax(-1)
            logp = torch.where(now, table.gather(-1, ids[..., None])[..., 0], logp)
            entropy = torch.where(now, -(table.exp() * table).sum(-1), entropy)
        if piece.columns is not None:
            logp, entropy = logp[:, piece.columns], entropy[:, piece.columns]
        return {"logp_nt": logp, "entropy_nt": entropy}

    def _density(self, raw: Tensor, mean: Tensor, rows: list[Decoded]) -> Tensor:
        sd = torch.tensor([r.deviation for r in rows], dtype=self.dtype)[:, None]
        return -((raw - mean) ** 2) / (2 * sd**2) - sd.log() - 0.5 * math.log(2 * math.pi)

    def _actions(self, rows: list[Decoded]) -> dict[str, Tensor]:
        raw = torch.stack([r.raw for r in rows])
        entropy = torch.tensor([math.log(r.deviation) + 0.5 * math.log(2 * math.pi * math.e) for r in rows])
        return {
            "logp_nt": self._density(raw, self.mean, rows),
            "entropy_nt": entropy.to(self.dtype)[:, None].expand(raw.shape),
            "kl_nt": (self.mean**2 / (2 * 0.6**2)).expand(raw.shape),
        }

    # ---- weights
    def parameters_of(self, channel: str) -> list[torch.nn.Parameter]:
        return [self.mean] if channel == "schedule" else [self.shared, self.own, self.mix]

    def stepped(self, channel: str) -> None:
        self.updates += channel == "schedule"

    def keep_reference(self, channel: str) -> None:
        self.kept_for.append(channel)
        if channel == "tokens":
            self.kept = [p.detach().clone() for p in self.parameters_of("tokens")]

    @contextmanager
    def reference(self) -> Iterator[None]:
        assert self.kept is not None
        now = [p.detach().clone() for p in self.parameters_of("tokens")]
        self._set(self.kept)
        yield
        self._set(now)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for p, v in zip(self.parameters_of("tokens"), values, strict=True):
            p.copy_(v)

    def save(self, path: Path) -> None:
        path.mkdir(parents=True)
        save_file(self.state_dict(), path / "model.safetensors")

    def state_dict(self) -> dict[str, Tensor]:
        named = {"shared": self.shared, "own": self.own, "mix": self.mix, "mean": self.mean}
        return {k: v.detach().clone() for k, v in named.items()} | {"updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._set([state["shared"], state["own"], state["mix"]])
        self.mean.copy_(state["mean"])
        self.updates = int(state["updates"])
