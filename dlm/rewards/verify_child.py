"""The process that compares answers with math-verify: a line in, a line out. Loads no torch.

Its own time limits are signals, which do nothing outside the main thread and wait for a long power of whole numbers to
end; so they are off here, and whoever asks kills this process instead (`dlm.rewards.verifier`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import resource
import signal
import sys

MEMORY = 4 << 30  # bytes of address space: an answer such as 9^(9^9) must not fill the machine


def main() -> None:
    """Reads `[right, said]` as JSON, writes `true` or `false`; a first line says whether math-verify is there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it may hang when its parent ends
    with contextlib.suppress(OSError, ValueError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what libraries print must not look like a reply
    logging.disable(logging.CRITICAL)
    try:
        from math_verify import parse, verify
    except ImportError as error:
        print(json.dumps(str(error)), file=replies, flush=True)
        return
    print(json.dumps(None), file=replies, flush=True)
    for line in sys.stdin:
        try:
            right, said = (parse(f"${text}$", parsing_timeout=None) for text in json.loads(line))
            same = bool(right and said and verify(right, said, timeout_seconds=None))
        except (Exception, RecursionError, MemoryError):  # whatever a computer algebra system makes of odd text
            same = False
        print(json.dumps(same), file=replies, flush=True)
