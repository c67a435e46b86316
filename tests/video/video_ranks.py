"""Plug-in of runs on several ranks: a reward that differs between answers, and what each rank has at the end.

Each process writes ends/NAME.rankR, beside the folder that holds the run folder NAME: a hash of its weights (put
together where they lie in shards), whether they do ("shards"), and how many files it read in the step itself ("step")
and ahead of it ("ahead").
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from mmrl.rewards import reward
from mmrl.training.run import Session
from mmrl.training.sharding import full, in_shards
from video import reading

READS = {"step": 0, "ahead": 0}
_read, _finish = reading.read, Session.finish


@reward("ordinals", tasks=("choice",))
def ordinals(outputs, records, info):
    return [sum(map(ord, o)) % 7 / 7 for o in outputs]


def _counted(*given: Any) -> Any:
    READS["ahead" if threading.current_thread().name.startswith("clips") else "step"] += 1
    return _read(*given)


def _told(session: Session) -> None:
    _finish(session)
    out = Path(session.run)
    folder = out.parent.parent / "ends"
    folder.mkdir(exist_ok=True)
    digest, parameters = hashlib.sha256(), session.policy.parameters_of("tokens")
    for parameter in parameters:
        digest.update(full(parameter.detach()).cpu().numpy().tobytes())
    found = {"weights": digest.hexdigest(), "shards": all(map(in_shards, parameters)), **READS}
    READS.update(step=0, ahead=0)
    (folder / f"{out.name}.rank{os.environ.get('RANK', 'alone')}").write_text(json.dumps(found))


reading.read = _counted
Session.finish = _told
