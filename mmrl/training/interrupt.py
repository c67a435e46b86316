"""Ctrl-C and SIGTERM end a run at the next step boundary, after a checkpoint.

before there is anything to save   the first signal leaves at once
while training or evaluating       the first one ends the run after this step; the same again leaves at once
while a checkpoint is written      the second one waits for the checkpoint; a third leaves at once
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mmrl.training.disk import resume_command

SAME_S = 1.0  # a launcher passes on the signal that the terminal sent to all of its group: one key, two signals


class LeftAtOnce(BaseException):
    """Asked to leave without saving. Exit code 128 + signal. No Exception, which user code may catch, and no
    KeyboardInterrupt, which a library of command lines may turn into an exit without a word."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class Stop:
    """Handler of both signals. `signum` is set once one came that waits for the end of the step.

    run      named in what is told; None: nothing is told
    loading  there is nothing to save yet
    saving   a checkpoint is being written
    """

    def __init__(self, run: Path | None = None) -> None:
        self.run = run
        self.signum: int | None = None
        self.loading = False
        self.saving = False
        self._count, self._last = 0, 0.0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._count and now - self._last < SAME_S:
            return
        self._count, self._last = self._count + 1, now
        if self.loading:
            raise LeftAtOnce("before training began, nothing is lost", signum)
        if self._count > 2 or self._count == 2 and not self.saving:
            raise LeftAtOnce(f"without saving{self._how()}", signum)
        self.signum = self.signum or signum
        self._say("saving, then leaving" if self.saving else "leaving after this step, once it is saved")

    def _how(self) -> str:
        return "" if self.run is None else f"; go on from the newest checkpoint with: {resume_command(self.run)}"

    def _say(self, what: str) -> None:
        """Straight to the terminal: a handler may interrupt a print that holds the stream's lock."""
        if self.run is not None:
            os.write(2, f"\n{what} (the same signal again leaves at once)\n".encode())


_current: Stop | None = None  # signals belong to the process


@contextmanager
def caught_signals(run: Path | None = None) -> Iterator[Stop]:
    global _current
    stop = Stop(run)
    try:
        old = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread (a notebook's worker): signals stay with their owner
        yield stop
        return
    _current = stop
    try:
        yield stop
    finally:
        _current = None
        for s, handler in old.items():
            signal.signal(s, handler)


@contextmanager
def saving() -> Iterator[None]:
    """Inside, a second signal waits."""
    if (stop := _current) is None:
        yield
        return
    stop.saving = True
    try:
        yield
    finally:
        stop.saving = False


class Interrupted(Exception):
    """The run was asked to stop and has saved. Exit code 128 + signal."""

    def __init__(self, signum: int, step: int, run: Path | None = None) -> None:
        how = "mmrl train RUN --resume" if run is None else resume_command(run)
        super().__init__(f"stopped by signal {signum} after step {step}, which is saved; go on with: {how}")
        self.signum, self.step = signum, step
