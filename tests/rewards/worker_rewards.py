"""Rewards that misbehave in processes of their own; imported by the tests and by the workers."""

import os
import re
import time
from pathlib import Path

from mmrl.rewards import reward


@reward("w_length")
def length(outputs, records, info):
    return [float(len(o)) for o in outputs]


@reward("w_hang")
def hang(outputs, records, info):
    if any(o == "hang" for o in outputs):
        time.sleep(600)
    return [1.0] * len(outputs)


@reward("w_spin")
def spin(outputs, records, info):
    """One call that keeps all threads of the process waiting for years, as a careless pattern does."""
    return [1.0 if o != "hang" else float(bool(re.match(r"(a+)+$", "a" * 60 + "b"))) for o in outputs]


@reward("w_die")
def die(outputs, records, info):
    if any(o == "die" for o in outputs):
        os._exit(9)
    return [1.0] * len(outputs)


@reward("w_die_once")
def die_once(outputs, records, info, *, folder: str):
    """The first worker that comes by dies; its replacement does the work."""
    mark = Path(folder) / "died"
    if not mark.exists():
        mark.touch()
        os._exit(9)
    return [1.0] * len(outputs)


@reward("w_whole", rowwise=False)
def whole(outputs, records, info):
    return [float(len(outputs))] * len(outputs)
