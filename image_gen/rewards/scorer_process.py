"""A scorer of your own in a process with its own Python: for packages that cannot live beside this one (HPSv3, the
mmdetection of GenEval, image-reward, hpsv2). Loads no torch.

Lines of JSON with PNG pictures go over pipes; what a failing scorer says is raised, never scored as 0.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from image_gen.rewards.pictures import chunks, prompts_of, to_image
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.registry import reward

CHILD = Path(__file__).with_name("scorer_child.py")
Seconds = Annotated[float, Field(gt=0)]
_RUNNING: dict[tuple[str, str, str], ScorerProcess] = {}
_LOCK = threading.Lock()


class ScorerProcess:
    """One child. `score` may be called from one thread at a time. After a crash or a time-out the next call starts a
    new child, `restarts` times in all; then every call raises at once."""

    def __init__(self, python: str, target: str, options: str, *, start_timeout_s: float, restarts: int) -> None:
        self.python, self.target, self.options = python, target, options
        self.start_timeout_s, self.starts_left = start_timeout_s, 1 + restarts
        self.lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._last = ""

    def score(self, request: dict[str, Any], n: int, *, timeout_s: float) -> list[float | None]:
        """The n scores of one request. Raises UserError with what went wrong."""
        if self._child is None:
            self._start()
        found = self._ask(json.dumps(request).encode() + b"\n", timeout_s)
        if "error" in found:
            raise UserError(f"{self.target} failed: {found['error']}")
        scores: list[float | None] = found["scores"]
        if len(scores) != n:
            raise UserError(f"{self.target} gave {len(scores)} scores for {n} pictures")
        return scores

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def _start(self) -> None:
        if self.starts_left < 1:
            raise UserError(f"{self.target} was given up: {self._last}")
        self.starts_left -= 1
        command = [self.python, str(CHILD), self.target, self.options]
        ours = self.python == sys.executable  # the module path of this Python is wrong for another
        environment = {k: v for k, v in os.environ.items() if ours or k not in ("PYTHONPATH", "PYTHONHOME")}
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=environment,
                process_group=0,  # the Ctrl-C of a terminal is meant for the run
            )
        except OSError as error:
            raise UserError(f"cannot start {self.python}: {error.strerror}") from None
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        said = self._ask(b"", self.start_timeout_s)
        if "error" in said:
            self._fail(f"it cannot load: {said['error']}")

    def _fail(self, why: str) -> None:
        self.close()
        self._last = why
        raise UserError(f"{self.target}: {why}")

    def _ask(self, message: bytes, timeout_s: float) -> dict[str, Any]:
        """Send the bytes, read one line. Both ends are watched, so that a child that reads nothing cannot block us."""
        assert self._child is not None and self._child.stdin is not None and self._child.stdout is not None
        into, out = self._child.stdin.fileno(), self._child.stdout.fileno()
        deadline, left, line = time.monotonic() + timeout_s, memoryview(message), b""
        while not line.endswith(b"\n"):
            wait = deadline - time.monotonic()
            ready, free, _ = select.select([out], [into] if left else [], [], max(wait, 0.0))
            if not ready and not free:
                self._fail(f"no answer within {timeout_s:g} s; it was stopped")
            try:
                if free:
                    left = left[os.write(into, left) :]
                piece = os.read(out, 1 << 20) if ready else None
            except BrokenPipeError:
                piece = b""
            if piece == b"":
                code = self._child.wait()
                self._fail(f"its process ended (exit code {code}); see what it printed above")
            line += piece or b""
        answer: dict[str, Any] = json.loads(line)
        return answer


def close_all() -> None:
    """End every scorer of this process."""
    with _LOCK:
        for one in _RUNNING.values():
            one.close()
        _RUNNING.clear()


atexit.register(close_all)


def png(output: Any) -> str:
    """The picture as base64 PNG: what the scorer sees is exact."""
    stream = BytesIO()
    to_image(output).save(stream, format="PNG", compress_level=1)
    return base64.b64encode(stream.getvalue()).decode("ascii")


@reward("scorer_process")
def scorer_process(
    outputs: Sequence[Any],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    target: str,
    python: str | None = None,
    options: dict[str, Any] | None = None,
    timeout_s: Seconds = 120.0,
    start_timeout_s: Seconds = 600.0,
    restarts: Annotated[int, Field(ge=0)] = 1,
    batch_size: int = 32,
) -> list[float | None]:
    """What `target` returns: `file.py:function` or `module:function`, function(images, prompts, metadata, **options)
    with PIL pictures -> one number (or None: does not apply) each.

    python: the executable that runs it (default: this one); it needs Pillow and the scorer's own packages.
    timeout_s: of one batch; start_timeout_s: of importing the target (load the model there). Raises UserError when the
    scorer fails, hangs, or ends.
    """
    if ":" not in target:
        raise UserError(f"target must be file.py:function or module:function, got {target!r}")
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        if not Path(place).expanduser().is_file():
            raise UserError(f"there is no file {place!r}")
        target = f"{Path(place).expanduser().resolve()}:{name}"
    key = (python or sys.executable, target, json.dumps(options or {}, sort_keys=True))
    with _LOCK:
        if key not in _RUNNING:
            _RUNNING[key] = ScorerProcess(*key, start_timeout_s=start_timeout_s, restarts=restarts)
        scorer = _RUNNING[key]
    prompts, values = prompts_of(records), []
    with scorer.lock:
        for at in chunks(len(outputs), batch_size):
            request = {
                "images": [png(output) for output in outputs[at]],
                "prompts": prompts[at],
                "metadata": [dict(record.meta) for record in records[at]],
            }
            values += scorer.score(request, len(outputs[at]), timeout_s=timeout_s)
    return values
