"""Are two mathematical answers the same? math-verify in a process of its own, with a time limit. Loads no torch.

Answers of a model are untrusted: simplifying 9^(9^9) runs for ever in code that no signal interrupts. A process that
does not answer in time is killed and replaced, and the answer counts as wrong. Works in threads, in the workers of the
reward pool, and after a fork. Linux and macOS.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from functools import lru_cache

from mmrl.errors import UserError

LIMIT_S = 5.0  # one comparison; usual ones take milliseconds
START_LIMIT_S = 120.0
LONGEST = 400  # characters of an answer that is looked at
_CODE = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from dlm.rewards.verify_child import main; main()"


class Verifier:
    """One child process, started with the first question. `restarts` counts those that had to be killed or died."""

    def __init__(self, *, limit_s: float = LIMIT_S) -> None:
        self.limit_s = limit_s
        self.restarts = 0
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._finalizer: weakref.finalize[..., Verifier] | None = None

    def same(self, right: str, said: str) -> bool:
        """True when math-verify holds `said` to equal `right`; False also when it fails or takes too long.
        Dollar signs and line ends are left out: math-verify would read several answers.

        Raises UserError when math-verify is not installed.
        """
        right, said = plain(right), plain(said)
        if not right or not said or max(len(right), len(said)) > LONGEST:
            return False
        with self._lock:
            child = self._ready()
            assert child.stdin is not None
            try:
                child.stdin.write(json.dumps([right, said]).encode() + b"\n")
                child.stdin.flush()
                reply = _line(child, self.limit_s)
            except OSError:
                reply = b""
            if not reply:
                self.restarts += 1
                self._end()
            return reply == b"true"

    def close(self) -> None:
        """End the child process; the next question starts another."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._child = self._finalizer = None

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._owner == os.getpid() and self._child.poll() is None:
            return self._child
        self._end()
        command = [sys.executable, "-c", _CODE, json.dumps([path or os.getcwd() for path in sys.path])]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is meant for the run
        )
        self._child, self._owner = child, os.getpid()
        self._finalizer = weakref.finalize(self, _kill, child, os.getpid())
        first = _line(child, START_LIMIT_S)
        if first != b"null":
            self._end()
            why = json.loads(first) if first else "its process does not start"
            raise UserError(f"rewards: math-verify cannot be used: {why}; pip install math-verify")
        return child


def _line(child: subprocess.Popen[bytes], limit_s: float) -> bytes:
    """The next line of its output without the end; empty when it ended or the time is over."""
    assert child.stdout is not None
    deadline = time.monotonic() + limit_s
    out = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while not out.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return b""
            piece = os.read(child.stdout.fileno(), 4096)
            if not piece:
                return b""
            out += piece
    return out.rstrip(b"\n")


def plain(text: str) -> str:
    """In one line, without (escaped) dollar signs."""
    return " ".join(text.replace("\\$", "").replace("$", "").split())


def _kill(child: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # after a fork the child still serves the process that started it
        return
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was left to write
                continue


_SHARED = Verifier()


@lru_cache(maxsize=4096)
def same_value(right: str, said: str) -> bool:
    """`Verifier.same` by the one child of this process; a group often gives one answer many times."""
    return _SHARED.same(right, said)
