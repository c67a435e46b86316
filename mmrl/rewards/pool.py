"""Processes that score rows, with a time limit: a hung worker is killed, a dead one is replaced. Loads no torch.

Standard pools cannot kill the one process that hangs without losing the others, hence this small one. Linux and macOS.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.calling import Fault, Row
from mmrl.rewards.registry import RewardDef

START_LIMIT_S = 300.0  # plug-ins may load a model
_CODE = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from mmrl.rewards.worker import main; main({fd}, {pid})"
)


@dataclass
class Job:
    """Rows `at` of the batch for one reward; `deaths` counts the workers that died on exactly these rows."""

    component: int
    one: RewardDef
    options: Mapping[str, Any]
    at: list[int]
    deaths: int = 0


class _Worker:
    def __init__(self, modules: Sequence[str]) -> None:
        self.pipe: Connection[Any, Any]
        self.pipe, theirs = Pipe()
        code = _CODE.format(fd=theirs.fileno(), pid=os.getpid())
        command = [sys.executable, "-c", code, json.dumps(sys.path)]
        # a group of its own: the Ctrl-C of a terminal is meant for the run, which saves before it ends its workers
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0)
        theirs.close()
        self.job: Job | None = None
        self.deadline = float("inf")
        self.pipe.send(list(modules))

    def wait_ready(self) -> None:
        problem: str | None = "it does not answer"
        try:
            if self.pipe.poll(START_LIMIT_S):
                problem = self.pipe.recv()
        except (EOFError, OSError):
            problem = f"it ended at once (exit code {self.process.wait()})"
        if problem is not None:
            self.end()
            raise UserError(f"rewards: a worker cannot start: {problem}")

    def end(self) -> int:
        """Kill it; its exit code."""
        self.pipe.close()
        self.process.kill()
        return self.process.wait()


def _end_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()
    workers.clear()


class WorkerPool:
    """`n` processes, started with the first batch. `timeout_s` limits one call of a reward function."""

    def __init__(self, n: int, *, timeout_s: float | None = None) -> None:
        self.n, self.timeout_s = n, timeout_s
        self.restarts = 0
        self._workers: list[_Worker] = []
        self._modules: list[str] = []
        self._finalizer = weakref.finalize(self, _end_all, self._workers)

    def close(self) -> None:
        _end_all(self._workers)

    def _start(self, jobs: Sequence[Job]) -> None:
        modules = sorted({job.one.function.__module__ for job in jobs})
        for job in jobs:
            if job.one.function.__module__ == "__main__":
                raise UserError(
                    f"rewards: {job.one.name!r} is defined in the script that runs, which workers cannot import; "
                    "move it to a module of its own (listed under `plugins:`), or set rewards.workers: 0"
                )
        if not set(modules) <= set(self._modules):
            self.close()
            self._modules = sorted({*self._modules, *modules})
        fresh = [_Worker(self._modules) for _ in range(self.n - len(self._workers))]
        self._workers.extend(fresh)
        try:
            for worker in fresh:
                worker.wait_ready()
        except UserError:
            self.close()
            raise

    def run(
        self, jobs: Sequence[Job], outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]]
    ) -> dict[tuple[int, int], Row]:
        """(component, row of the batch) -> Row for every row of every job."""
        self._start(jobs)
        queue = deque(piece for job in jobs for piece in _cut(job, self.n))
        done: dict[tuple[int, int], Row] = {}
        try:
            self._loop(queue, done, outputs, records, info)
        except BaseException:
            self.close()  # answers of this batch must not reach the next one
            raise
        return done

    def _loop(
        self,
        queue: deque[Job],
        done: dict[tuple[int, int], Row],
        outputs: Sequence[Any],
        records: Sequence[Record],
        info: Sequence[dict[str, Any]],
    ) -> None:
        while queue or any(w.job for w in self._workers):
            for worker in self._workers:
                if worker.job is None and queue:
                    self._give(worker, queue.popleft(), outputs, records, info)
            busy = [w for w in self._workers if w.job]
            left = min(w.deadline for w in busy) - time.monotonic()
            ready = wait([w.pipe for w in busy], timeout=None if left == float("inf") else max(left, 0.0))
            for worker in busy:
                if worker.pipe in ready:
                    self._take(worker, queue, done)
                elif time.monotonic() > worker.deadline:
                    self._overdue(worker, queue, done)

    def _give(
        self,
        worker: _Worker,
        job: Job,
        outputs: Sequence[Any],
        records: Sequence[Record],
        info: Sequence[dict[str, Any]],
    ) -> None:
        rows = ([_alone(outputs[i]) for i in job.at], [records[i] for i in job.at], [info[i] for i in job.at])
        worker.job = job
        worker.deadline = time.monotonic() + self.timeout_s if self.timeout_s else float("inf")
        # a worker that died while idle: the wait in the loop sees the end of its pipe
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # bytes of plain pickle: `send` would share the memory of tensors, which needs a multiprocessing child
            worker.pipe.send_bytes(pickle.dumps((job.one.name, dict(job.options), *rows)))

    def _take(self, worker: _Worker, queue: deque[Job], done: dict[tuple[int, int], Row]) -> None:
        job = worker.job
        assert job is not None
        try:
            rows: list[Row] = worker.pipe.recv()
        except (EOFError, OSError):
            code = self._replace(worker)
            job.deaths += 1
            if not _split(job, queue):
                if job.deaths < 2:
                    queue.append(job)
                else:
                    _fail(job, done, f"its worker process died twice (exit code {code})")
            return
        worker.job, worker.deadline = None, float("inf")
        done.update({(job.component, i): row for i, row in zip(job.at, rows, strict=True)})

    def _overdue(self, worker: _Worker, queue: deque[Job], done: dict[tuple[int, int], Row]) -> None:
        job = worker.job
        assert job is not None
        self._replace(worker)
        if not _split(job, queue):
            _fail(job, done, f"took longer than rewards.timeout_s = {self.timeout_s:g} s and was stopped")

    def _replace(self, worker: _Worker) -> int:
        code = worker.end()
        self.restarts += 1
        fresh = _Worker(self._modules)
        self._workers[self._workers.index(worker)] = fresh
        fresh.wait_ready()
        return code


def _alone(output: Any) -> Any:
    """A tensor that is one row of a batch would be pickled with the whole batch."""
    return output.clone() if hasattr(output, "untyped_storage") else output


def _cut(job: Job, n: int) -> list[Job]:
    """Up to n pieces of about equal size; a reward that looks across rows stays whole."""
    if not job.one.rowwise or len(job.at) < 2:
        return [job]
    size = -(-len(job.at) // n)
    cuts = range(0, len(job.at), size)
    return [Job(job.component, job.one, job.options, job.at[i : i + size]) for i in cuts]


def _split(job: Job, queue: deque[Job]) -> bool:
    """Put the rows back one by one, so that only the guilty one fails. False when there is nothing to split."""
    if len(job.at) < 2 or not job.one.rowwise:
        return False
    queue.extend(Job(job.component, job.one, job.options, [i]) for i in job.at)
    return True


def _fail(job: Job, done: dict[tuple[int, int], Row], why: str) -> None:
    done.update({(job.component, i): Fault(f"reward {job.one.name!r}: {why}") for i in job.at})
