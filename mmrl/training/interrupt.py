"""Ctrl-C and SIGTERM end a run at the next step boundary, after a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """`signum` is set once a signal came; a second one raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum


@contextmanager
def caught_signals() -> Iterator[Stop]:
    stop = Stop()
    try:
        old = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread (a notebook's worker): signals stay with their owner
        yield stop
        return
    try:
        yield stop
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


class Interrupted(Exception):
    """The run was asked to stop and has saved. Exit code 128 + signal."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by signal {signum} after step {step}")
        self.signum, self.step = signum, step
