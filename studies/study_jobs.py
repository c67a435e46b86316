"""The runs of a study as processes of the real `mmrl train`, resumable after a kill at any time.

Of one seed, arms run one after the other, so that all of them meet the same load; several seeds may run at once. Beside
each run folder lie

    NAME.json   what the run was started with, and the load of the machine (nothing else may go on in its folder)
    NAME.log    what `mmrl train` printed
    NAME.lock   held by the process that trains, also after the study itself was killed
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import study_file
from study_file import Study

from mmrl.errors import UserError

Tell = Callable[[str], None]
POLL_S = 0.2
#: A step that takes longer than this is not waited for after Ctrl-C.
PATIENCE_S = 60.0


class Stopped(Exception):
    """The study was asked to stop."""


@dataclass
class Jobs:
    """Runs what is missing of a study. `run()` returns when all runs have a summary.json."""

    study: Study
    seeds: list[int]
    folder: Path
    jobs: int
    steps: int | None
    tell: Tell
    program: list[str] = field(default_factory=lambda: [str(Path(sys.executable).with_name("mmrl"))])

    def __post_init__(self) -> None:
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.children: list[subprocess.Popen[bytes]] = []
        self.walls: list[float] = []  # seconds of the runs of this session, start and evaluation included
        self.total = len(self.seeds) * len(self.study.arms)
        self.left = dict.fromkeys(self.seeds, len(self.study.arms))

    def run(self) -> None:
        """Raises UserError when a run fails, KeyboardInterrupt after Ctrl-C; the other runs save first."""
        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = [pool.submit(self._seed, seed) for seed in self.seeds]
            try:
                while not all(f.done() for f in waiting):
                    if any(f.done() and f.exception() for f in waiting):
                        break
                    time.sleep(POLL_S)
            finally:
                if not all(f.done() for f in waiting):
                    self._end_children()
                for future in waiting:
                    future.cancel()
        failed = [f.exception() for f in waiting if not f.cancelled() and f.exception()]
        for error in sorted(failed, key=lambda e: isinstance(e, Stopped)):
            raise error  # type: ignore[misc]

    def _end_children(self) -> None:
        self.stop.set()
        if self.children:
            self.tell(f"stopping: {len(self.children)} runs save first (at most {PATIENCE_S:.0f} s)")
        with self.lock:
            for child in self.children:
                child.send_signal(signal.SIGTERM)  # not SIGINT, which a process begun in the background ignores

    def _seed(self, seed: int) -> None:
        for name in self.study.order:
            if self.stop.is_set():
                raise Stopped
            self._arm(seed, name)

    def _arm(self, seed: int, name: str) -> None:
        run = self.folder / f"seed-{seed}" / name
        run.parent.mkdir(parents=True, exist_ok=True)
        with open(run.with_name(f"{name}.lock"), "a") as lock:
            self._hold(lock, seed, name)
            if self._finished(run, seed, name):
                with self.lock:
                    self.left[seed] -= 1
                return
            started = time.perf_counter()
            self._train(run, seed, name, lock)
            with self.lock:
                self.left[seed] -= 1
                self.walls.append(time.perf_counter() - started)
                self.tell(self._line(run, seed, name))

    def _hold(self, lock: IO[str], seed: int, name: str) -> None:
        """Wait until nobody else trains in this folder, e.g. a run whose study was killed."""
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not told:
                    self.tell(f"seed {seed}, {name}: still trained by an earlier process; waiting for it")
                told = True
                if self.stop.wait(POLL_S):
                    raise Stopped from None

    def _arguments(self, seed: int, name: str) -> list[str]:
        budget = self.study.arms[name].budget
        seconds = None
        if budget is not None:
            seconds = read_json(self.folder / f"seed-{seed}" / budget / "summary.json")["seconds"]
        return [
            self.study.config,
            *study_file.overrides(self.study, name, seed=seed, steps=self.steps, seconds=seconds),
        ]

    def _finished(self, run: Path, seed: int, name: str) -> bool:
        """Raises UserError when the folder holds a run that was started with other settings."""
        arguments, note = self._arguments(seed, name), run.with_name(f"{name}.json")
        found = read_json(note)["arguments"] if note.is_file() else []
        if found != arguments and (note.is_file() or run.exists()):
            changed = sorted(set(found) ^ set(arguments))
            raise UserError(
                f"{run}: was started with other settings ({', '.join(changed[:4])}); delete it and its {name}.json, or "
                "choose another folder with --out"
            )
        return (run / "summary.json").is_file()

    def _train(self, run: Path, seed: int, name: str, lock: IO[str]) -> None:
        arguments = self._arguments(seed, name)
        note = {"arguments": arguments, "jobs": self.jobs, "load_at_start": os.getloadavg()[0]}
        write_json(run.with_name(f"{name}.json"), note)
        command = [*self.program, "train", *arguments, f"out={run}"]
        if (run / "config.yaml").is_file():
            command.append("--resume")
        with open(run.with_name(f"{name}.log"), "ab") as log:
            with self.lock:
                if self.stop.is_set():
                    raise Stopped
                # a session of its own: Ctrl-C reaches the study alone, which passes it on once; the lock goes along
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock.fileno()],
                    start_new_session=True,
                )
                self.children.append(child)
            try:
                code = self._wait(child)
            finally:
                with self.lock:
                    self.children.remove(child)
        if self.stop.is_set() and code != 0:
            raise Stopped
        if code != 0 or not (run / "summary.json").is_file():
            said = [line for line in run.with_name(f"{name}.log").read_text(errors="replace").splitlines() if line]
            last = said[-1].removeprefix("error: ") if said else "it said nothing"
            raise UserError(f"seed {seed}, {name}: mmrl train ended with exit code {code}: {last} (see {run}.log)")

    def _wait(self, child: subprocess.Popen[bytes]) -> int:
        asked: float | None = None
        while (code := child.poll()) is None:
            if self.stop.is_set():
                asked = asked or time.monotonic()
                if time.monotonic() - asked > PATIENCE_S:
                    child.kill()
            time.sleep(POLL_S)
        return code

    def _line(self, run: Path, seed: int, name: str) -> str:
        """`[3/20] seed 0  shuffled rewards  mean_iou 0.497 -> 0.390 (-0.107)  210 steps, 104 s  left about 21 min`"""
        summary, metric = read_json(run / "summary.json"), self.study.metrics[0]
        before, after = summary["before"][metric], summary["after"][metric]
        width = max(len(arm.label) for arm in self.study.arms.values())
        left = sum(self.left.values())
        minutes = longest(list(self.left.values()), self.jobs) * sum(self.walls) / len(self.walls) / 60
        rest = f"  left about {math.ceil(minutes)} min" if left else ""
        return (
            f"[{self.total - left}/{self.total}] seed {seed}  {self.study.arms[name].label:<{width}}  "
            f"{metric} {before:.3f} -> {after:.3f} ({after - before:+.3f})  "
            f"{summary['steps']} steps, {summary['seconds']:.0f} s{rest}"
        )


def longest(runs: list[int], jobs: int) -> int:
    """Runs on the critical path when seeds, with so many runs left each, are shared out among `jobs`."""
    load = [0] * jobs
    for count in runs:
        load[load.index(min(load))] += count
    return max(load)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
