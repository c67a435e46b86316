"""A policy small enough to check by hand: T decisions from a table of logits, cut into pieces in every way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.selection.request import Request
from mmrl.training.policy import Bundle, Needs, Piece, Policy, Scope
from mmrl.training.rollouts import Rollouts

VOCAB, LENGTH = 5, 4


class ToyPolicy(Policy):
    """logits[t, v] = (prompt vector @ shared) + own[t, v]; `shared` runs once per prompt as a bundle's prefix.

    cut: rows | columns | prompts | whole. reward: the share of zeros in the sample (see `zeros`).
    """

    provides = frozenset({"logp_nt", "entropy_nt", "supervised_nt"})

    def __init__(self, *, cut: str = "rows", seed: int = 0, dtype: torch.dtype = torch.float64, unit: str = "decision"):
        generator = torch.Generator().manual_seed(seed)
        self.shared = torch.nn.Parameter(torch.randn(3, VOCAB, generator=generator, dtype=dtype) * 0.3)
        self.own = torch.nn.Parameter(torch.randn(LENGTH, VOCAB, generator=generator, dtype=dtype) * 0.3)
        self.cut, self.unit, self.dtype = cut, unit, dtype  # type: ignore[assignment]
        self.kept: list[torch.Tensor] | None = None
        self.opened = 0

    # ---- sampling
    def _prompt(self, record: Record) -> torch.Tensor:
        return torch.tensor(record.meta["x"], dtype=self.dtype)

    def _logits(self, prompt: torch.Tensor) -> torch.Tensor:
        return prompt @ self.shared + self.own

    @torch.no_grad()
    def rollout(self, requests: Sequence[Request], streams: Streams, *, greedy: bool = False) -> Rollouts:
        rows, records, info, prompts, logps, masks = [], [], [], [], [], []
        for b, request in enumerate(requests):
            logp = self._logits(self._prompt(request.record)).log_softmax(-1)
            for j in range(request.n):
                generator = streams.generator(request.record.id, request.first_sample + j)
                ids = logp.argmax(-1) if greedy else torch.multinomial(logp.exp(), 1, generator=generator)[:, 0]
                length = 1 + (int(request.record.id[1:]) + request.first_sample + j) % LENGTH  # ragged
                rows.append(ids)
                records.append(request.record)
                info.append({"length": length, "finished": True, "sample": j, "limit": LENGTH})
                prompts.append(b)
                logps.append(logp.gather(1, ids[:, None])[:, 0])
                masks.append(torch.arange(LENGTH) < length)
        table = {"mask_nt": torch.stack(masks), "sampler_logp_nt": torch.stack(logps)}
        outputs = ["".join(str(int(v)) for v in ids[: i["length"]]) for ids, i in zip(rows, info, strict=True)]
        keys = {"prompt": torch.tensor(prompts)}
        return Rollouts(rows, records, outputs, info, keys, {"tokens": table}, stats={"forwards": float(len(requests))})

    def demonstrations(self, records: Sequence[Record], streams: Streams) -> Rollouts:
        out = self.rollout([Request(record=r, n=1) for r in records], streams)
        out.rows = [torch.tensor([int(c) for c in (r.response or "")]) for r in records]
        out.tables["tokens"]["mask_nt"] = torch.ones(len(records), LENGTH, dtype=torch.bool)
        return out

    # ---- likelihood
    def bundles(self, rollouts: Rollouts, *, channel: str, update: int, scope: Scope) -> list[Bundle]:
        n = len(rollouts)
        index = torch.arange(n)
        if self.cut == "whole" or scope == "batch":
            return [Bundle([Piece(index, data=rollouts)], data=rollouts)]
        if self.cut == "columns":
            return [Bundle([Piece(index, torch.tensor([t]), rollouts) for t in range(LENGTH)], data=rollouts)]
        out = []
        for prompt in torch.unique(rollouts.keys["prompt"]):
            rows = (rollouts.keys["prompt"] == prompt).nonzero()[:, 0]
            parts = [rows] if self.cut == "prompts" or scope == "group" else list(rows.split(2))
            out.append(Bundle([Piece(p, data=rollouts) for p in parts], data=rollouts.select(rows)))
        return out

    def open(self, bundle: Bundle, *, grad: bool) -> Any:
        self.opened += 1
        prompts = torch.stack([self._prompt(r) for r in bundle.data.records])
        if self.cut in ("whole", "columns"):
            return (prompts @ self.shared, None)
        once = prompts[:1] @ self.shared
        leaf = once.detach().requires_grad_(grad)
        return (leaf, once)

    def close(self, shared: Any) -> None:
        leaf, once = shared
        if once is not None and leaf.grad is not None:
            once.backward(leaf.grad)
        elif once is None:
            pass  # the graph was backwarded by the pieces

    def evaluate(self, piece: Piece, shared: Any, needs: Needs) -> dict[str, torch.Tensor]:
        leaf, once = shared
        rollouts: Rollouts = piece.data
        if once is None:  # recomputed per piece, so single columns can be backwarded alone
            prompts = torch.stack([self._prompt(rollouts.records[int(i)]) for i in piece.rows])
            base = prompts @ self.shared
        else:
            base = leaf.expand(len(piece.rows), -1)
        logits = base[:, None, :] + self.own
        ids = torch.stack([rollouts.rows[int(i)] for i in piece.rows])
        if piece.columns is not None:
            logits, ids = logits[:, piece.columns], ids[:, piece.columns]
        logp = logits.log_softmax(-1)
        chosen = logp.gather(-1, ids[..., None])[..., 0]
        tables = {"logp_nt": chosen, "entropy_nt": -(logp.exp() * logp).sum(-1), "supervised_nt": -chosen}
        return {k: v for k, v in tables.items() if k in needs.channels}

    # ---- weights
    @contextmanager
    def reference(self) -> Iterator[None]:
        assert self.kept is not None, "keep_reference was not called"
        now = [p.detach().clone() for p in self.parameters_of("tokens")]
        self._set(self.kept)
        yield
        self._set(now)

    def _set(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for p, v in zip(self.parameters_of("tokens"), values, strict=True):
                p.copy_(v)

    def keep_reference(self, channel: str) -> None:
        if self.kept is None:
            self.kept = [p.detach().clone() for p in self.parameters_of("tokens")]

    def parameters_of(self, channel: str) -> list[torch.nn.Parameter]:
        return [self.shared, self.own]

    def save(self, path: Path) -> None:
        path.mkdir(parents=True)
        save_file(self.state_dict(), path / "model.safetensors")

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"shared": self.shared.detach().clone(), "own": self.own.detach().clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self._set([state["shared"], state["own"]])


def records(n: int = 6, seed: int = 0) -> list[Record]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Record(id=f"r{i}", task="toy", prompt=f"p{i}", answer="0", response="0" * LENGTH, meta={"x": x})
        for i, x in enumerate(torch.randn(n, 3, generator=generator).tolist())
    ]


def zeros(outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """Share of zeros."""
    return [o.count("0") / max(1, len(o)) for o in outputs]
