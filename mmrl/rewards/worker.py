"""A worker process of the reward pool: reads jobs from a socket, answers with rows. Loads no torch by itself.

Started as `python -c "... main(fd)"` and not by multiprocessing, which would import the user's main script again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from mmrl.errors import UserError
from mmrl.plugins import load_plugins
from mmrl.rewards.calling import Fault, score_rows
from mmrl.rewards.registry import find


def _die_with_parent() -> None:
    """Linux ends this process with its parent's, even while a reward hangs inside one call that lets no thread run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _leave_with_parent(parent: int) -> None:
    """A worker whose parent was killed must not stay behind: elsewhere, and if it was killed before this began."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main(fd: int, parent: int) -> None:
    """First message: modules to import, answered by None or an error text. Then (name, options, outputs, records,
    info) -> list of rows, until the socket closes."""
    for one in (signal.SIGINT, signal.SIGTERM):  # also sent to every process of a job; the run decides when to end
        signal.signal(one, lambda *_: None)  # not SIG_IGN, which programs that a reward starts would inherit
    _die_with_parent()
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()
    pipe: Connection[Any, Any] = Connection(fd)
    try:
        modules = pipe.recv()
        try:
            load_plugins(modules)
        except UserError as error:
            pipe.send(str(error))
            return
        pipe.send(None)
        while True:
            name, options, outputs, records, info = pipe.recv()
            try:
                rows = score_rows(find(name), options, outputs, records, info)
            except UserError:  # not registered by importing its module
                why = f"reward {name!r}: a worker does not know it; register it when its module is imported"
                rows = [Fault(why)] * len(outputs)
            pipe.send(rows)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is done with us
