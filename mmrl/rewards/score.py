"""The reward stage: outputs -> table [N, K]. Axes: N rows, K reward components. Nothing in it carries gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.config import Rewards
from mmrl.core.groups import total_reward
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.cache import RewardCache
from mmrl.rewards.calling import Fault, Row, score_rows
from mmrl.rewards.plan import check_task, make_plan
from mmrl.rewards.pool import Job, WorkerPool
from mmrl.rewards.watch import ConstantWatch


@dataclass
class Scored:
    """reward_nk: float64 [N,K], NaN = does not apply (a whole row of NaN = skipped). weight_k: float64 [K].
    failures: a line per row that a reward failed on (only with on_error: skip)."""

    reward_nk: Tensor
    names: list[str]
    weight_k: Tensor
    failures: list[str] = field(default_factory=list)

    @property
    def reward_n(self) -> Tensor:
        """Weighted sum of the components that apply, [N]; NaN where none does."""
        return total_reward(reward_nk=self.reward_nk, weight_k=self.weight_k)


class Scorer:
    """Scores batches as the `rewards` section says. Use as a context manager, or call `close`.

    tasks: the tasks of the data, if known: mistakes then show at once, and `auto` has only their columns.
    """

    def __init__(self, config: Rewards, *, tasks: Iterable[str] | None = None) -> None:
        if config.timeout_s is not None and config.workers == 0:
            raise UserError("rewards.timeout_s needs rewards.workers >= 1: a call in this process cannot be stopped")
        self.plan = make_plan(config.components, tasks)
        self.names = [name for c in self.plan for name in c.columns]
        self.weight_k = torch.tensor([c.weight for c in self.plan for _ in c.columns], dtype=torch.float64)
        self.success = {name: c.success for c in self.plan for name in c.columns if c.success is not None}
        self.skip = config.on_error == "skip"
        self.watch = ConstantWatch(self.names)
        self.failed_rows = 0
        self.cache = RewardCache() if config.cache else None
        self._pool = WorkerPool(config.workers, timeout_s=config.timeout_s) if config.workers else None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.close()

    def state_dict(self) -> dict[str, Any]:
        return {"watch": self.watch.state_dict(), "failed_rows": self.failed_rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.watch.load_state_dict(state["watch"])
        self.failed_rows = int(state["failed_rows"])

    def score(self, outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> Scored:
        """Every component on the rows whose task it applies to.

        Raises UserError naming reward, record and sample on the first fault, unless on_error is skip: then the whole
        row becomes NaN (a partial sum would be unfair against its group) and the fault is listed.
        """
        if not len(outputs) == len(records) == len(info):
            raise ValueError(f"{len(outputs)} outputs, {len(records)} records, {len(info)} infos: must be equally many")
        for task in {r.task for r in records}:
            check_task(self.plan, task)
        rows = self._rows(outputs, records, info)
        table = torch.full((len(outputs), len(self.names)), math.nan, dtype=torch.float64)
        faults: dict[int, str] = {}
        at = 0
        for k, component in enumerate(self.plan):
            width = len(component.columns)
            for i in range(len(outputs)):
                row = rows.get((k, i))
                if isinstance(row, Fault):
                    faults.setdefault(i, f"record {records[i].id!r}, sample {info[i].get('sample', i)}: {row.message}")
                elif row is not None:
                    table[i, at : at + width] = torch.tensor(row, dtype=torch.float64)
            if component.unfinished is not None:  # where the reward applies
                cut = torch.tensor([not told.get("finished", True) for told in info])[:, None]
                own = table[:, at : at + width]
                own.masked_fill_(cut & torch.isfinite(own), component.unfinished)
            at += width
        if faults and not self.skip:
            more = f" (and {len(faults) - 1} more rows)" if len(faults) > 1 else ""
            first = faults[min(faults)]
            raise UserError(f"{first}{more}; fix it, or go on without such rows by rewards.on_error: skip")
        for i in faults:
            table[i] = math.nan
        self.failed_rows += len(faults)
        return Scored(table, list(self.names), self.weight_k, [faults[i] for i in sorted(faults)])

    def _rows(
        self, outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]]
    ) -> dict[tuple[int, int], Row]:
        """(component, row) -> Row, from the cache, the workers or this process."""
        rows: dict[tuple[int, int], Row] = {}
        keys: dict[tuple[int, int], bytes | None] = {}
        jobs: list[Job] = []
        for k, component in enumerate(self.plan):
            todo = []
            for i, record in enumerate(records):
                if not component.applies(record.task):
                    continue
                if self.cache is not None:
                    keys[k, i] = self.cache.key(component, outputs[i], record)
                    known = self.cache.get(keys[k, i])
                    if known is not None:
                        rows[k, i] = known
                        continue
                todo.append(i)
            if todo:
                jobs.append(Job(k, component.one, component.options, todo))
        fresh = self._run(jobs, outputs, records, info)
        if self.cache is not None:
            for at, row in fresh.items():
                self.cache.put(keys[at], row)
        return rows | fresh

    def _run(
        self, jobs: list[Job], outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]]
    ) -> dict[tuple[int, int], Row]:
        if self._pool is not None and jobs:
            return self._pool.run(jobs, outputs, records, info)
        done: dict[tuple[int, int], Row] = {}
        for job in jobs:
            batch = ([outputs[i] for i in job.at], [records[i] for i in job.at], [info[i] for i in job.at])
            found = score_rows(job.one, job.options, *batch)
            done.update({(job.component, i): row for i, row in zip(job.at, found, strict=True)})
        return done
