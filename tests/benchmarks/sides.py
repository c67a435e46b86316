"""Sides for the tests of the harness: standard library only, so that their processes start at once."""

import time
from collections.abc import Callable
from typing import Any


def sleeping(seconds: float, mebibytes: int = 0) -> Callable[[Any], None]:
    """Holds so much memory for so long."""

    def work(clock: Any) -> None:
        with clock("sleep"):
            held = bytearray(b"\x01") * (mebibytes << 20)
            time.sleep(seconds)
            del held

    return work
