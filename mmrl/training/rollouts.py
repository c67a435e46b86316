"""What a selector asks for and what a policy answers with. Axes: N rollouts, T decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mmrl.core.streams import stream_seed
from mmrl.data.records import Record
from mmrl.selection.request import Request as Request


def row_keys(requests: Sequence[Request]) -> dict[str, torch.Tensor]:
    """prompt, record, task and the selector's own keys, which every request must carry: int64 [N] each, request after
    request."""
    names = set(requests[0].keys)
    for request in requests:
        if set(request.keys) != names:
            raise ValueError(f"requests disagree about keys: {sorted(names)} and {sorted(request.keys)}")
    found: dict[str, list[int]] = {name: [] for name in sorted(names | {"prompt", "record", "task"})}
    for number, request in enumerate(requests):
        own = {
            "prompt": number,
            "record": stream_seed("record", request.record.id),
            "task": stream_seed("task", request.record.task),
        } | request.keys
        for name, values in found.items():
            values.extend([own[name]] * request.n)
    return {name: torch.tensor(values, dtype=torch.long) for name, values in found.items()}


def _pad(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


@dataclass
class Rollouts:
    """N sampled rows.

    rows      family-private payload per row: all that is needed to recompute its likelihood exactly; None for a row
              that another rank sampled.
    records   the record of each row.
    outputs   decoded output of each row (text, picture, ...): what rewards and people see.
    info      per row: at least {"length": int, "finished": bool, "sample": int}; families add to it. A row that cannot
              be used says why under "unusable": it gets no reward and is told.
    keys      int64 [N] each: "prompt" (rows of one group share it), and "record", "task", "trajectory", "state", ...
    tables    channel -> {"mask_nt": bool [N,T], "sampler_logp_nt": [N,T], further [N,T] tables}.
    segments  channel -> {"turn": int64 [N,T], ...}.
    stats     counters of the rollout as a whole (forwards, tokens, seconds); added up by `concat`.
    steps     the output of each decision, [N][T], None where there is none to score; only when rewards per decision
              were asked for (`Policy.expect`).
    """

    rows: list[Any]
    records: list[Record]
    outputs: list[Any]
    info: list[dict[str, Any]]
    keys: dict[str, torch.Tensor]
    tables: dict[str, dict[str, torch.Tensor]]
    segments: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    stats: dict[str, float] = field(default_factory=dict)
    steps: list[list[Any]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def mine(self) -> torch.Tensor:
        """Indices of the rows that this rank holds, int64 [n]; all of them in one process."""
        return torch.tensor([i for i, row in enumerate(self.rows) if row is not None], dtype=torch.long)

    def select(self, index: Sequence[int] | torch.Tensor) -> Rollouts:
        """The rows named by `index`, in that order; stats stay with the whole."""
        at = torch.as_tensor(index, dtype=torch.long)
        pick = at.tolist()
        cut = {c: {k: v[at] for k, v in t.items()} for c, t in self.tables.items()}
        seg = {c: {k: v[at] for k, v in t.items()} for c, t in self.segments.items()}
        return Rollouts(
            rows=[self.rows[i] for i in pick],
            records=[self.records[i] for i in pick],
            outputs=[self.outputs[i] for i in pick],
            info=[self.info[i] for i in pick],
            keys={k: v[at] for k, v in self.keys.items()},
            tables=cut,
            segments=seg,
            stats=dict(self.stats),
            steps=None if self.steps is None else [self.steps[i] for i in pick],
        )

    @staticmethod
    def concat(parts: Sequence[Rollouts]) -> Rollouts:
        """One after the other; tables are padded to the longest T with zeros (mask False)."""

        def join(get: str) -> dict[str, dict[str, torch.Tensor]]:
            first = getattr(parts[0], get)
            return {
                c: {k: _pad([row for p in parts for row in getattr(p, get)[c][k]]) for k in t} for c, t in first.items()
            }

        stats: dict[str, float] = {}
        for part in parts:
            for name, value in part.stats.items():
                stats[name] = stats.get(name, 0.0) + value
        return Rollouts(
            rows=[r for p in parts for r in p.rows],
            records=[r for p in parts for r in p.records],
            outputs=[o for p in parts for o in p.outputs],
            info=[i for p in parts for i in p.info],
            keys={k: torch.cat([p.keys[k] for p in parts]) for k in parts[0].keys},
            tables=join("tables"),
            segments=join("segments"),
            stats=stats,
            steps=None if parts[0].steps is None else [row for p in parts for row in p.steps or []],
        )
