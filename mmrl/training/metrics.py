"""The log of a run: metrics.jsonl (one flushed line a step, rewound on resume) and optional trackers."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from mmrl.config import Logging
from mmrl.errors import UserError
from mmrl.training.disk import reason, replace, writing

#: Beginnings of the fields that hold clock readings: all that may differ between a run and the same run resumed.
TIMES = ("seconds", "tokens_per_s")


def untimed(values: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that hold clock readings."""
    return {k: v for k, v in values.items() if not k.startswith(TIMES)}


class Tracker(Protocol):
    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files. Points that an earlier session wrote from `first_step` on are purged: the run makes those steps
    again. None: from the first step that is logged on."""

    def __init__(self, folder: Path, first_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.old_hook = threading.excepthook
        threading.excepthook = self.hook = _quiet_writer(self.old_hook)
        self.open: Callable[[int], Any] = lambda step: SummaryWriter(str(folder), purge_step=step)
        self.writer: Any = None if first_step is None else self.open(first_step)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.writer = self.writer or self.open(step)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        try:
            if self.writer is not None:
                self.writer.close()
        finally:
            if threading.excepthook is self.hook:
                threading.excepthook = self.old_hook


def _quiet_writer(old: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """TensorBoard writes in a thread of its own. What fails there is raised again by the next call here; a traceback of
    the thread besides would only frighten."""

    def hook(error: Any) -> None:
        if type(error.thread).__name__ != "_AsyncWriterThread" or not isinstance(error.exc_value, OSError):
            old(error)

    return hook


class External:
    """wandb or trackio: the same three calls. A resumed run goes on in the tracker's own run, whose id (wandb) or name
    (trackio) is kept in the run folder."""

    def __init__(self, package: str, project: str, run: Path, config: dict[str, Any]) -> None:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"log.{package}: the package {package} is not installed; pip install {package}, or set it false"
            )
        self.module = importlib.import_module(package)
        kept = run / ("wandb_run_id" if package == "wandb" else "trackio_run_name")
        known = kept.read_text(encoding="utf-8").strip() if kept.exists() else None
        if package == "wandb":
            identity = known or uuid.uuid4().hex
            self.module.init(project=project, name=run.name, config=config, id=identity, resume="allow")
        else:  # "never" gives another name where one is taken, by a run of another folder
            resume = "allow" if known else "never"
            started = self.module.init(project=project, name=known or run.name, config=config, resume=resume)
            identity = str(started.name)
        kept.write_text(identity + "\n", encoding="utf-8")

    def log(self, step: int, values: dict[str, float]) -> None:
        self.module.log(values, step=step)

    def close(self) -> None:
        self.module.finish()


def clean(value: Any) -> Any:
    """JSON has no NaN: every number that is not finite, at any depth, becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    return value


def by_phase(numbers: dict[str, float], phase: str) -> dict[str, float]:
    """The numbers of a step as trackers show them where phases alternate: what an update measures is named after its
    phase, so that no curve mixes two."""
    from mmrl.report.charts import COUNTS, OF_ROLLOUTS

    shared = (*OF_ROLLOUTS, *COUNTS, "rows", "seconds")
    return {name if name.startswith(shared) else f"{phase}/{name}": value for name, value in numbers.items()}


class MetricsLog:
    """Appends lines; `lines` is the position a checkpoint remembers. phases: several alternate, see `by_phase`."""

    def __init__(
        self, run: Path, config: Logging, *, keep_lines: int, settings: dict[str, Any], phases: bool = False
    ) -> None:
        self.path, self.phases = run / "metrics.jsonl", phases
        first_step = self._rewind(keep_lines)
        self.lines = keep_lines
        with writing(self.path):
            self.file = self.path.open("a")
        self.trackers: list[Tracker] = []
        if config.tensorboard:
            with writing(run / "tensorboard"):
                self.trackers.append(TensorBoard(run / "tensorboard", first_step))
        for package in ("wandb", "trackio"):
            if getattr(config, package):
                self.trackers.append(External(package, config.project, run, settings))

    def _rewind(self, lines: int) -> int | None:
        """The step after the last line kept; None when no line is."""
        if not self.path.exists():
            return None
        kept = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[:lines]
        replace(self.path, "".join(kept))
        return int(json.loads(kept[-1])["step"]) + 1 if kept else None

    def write(self, values: dict[str, Any]) -> None:
        line = json.dumps(clean(values), allow_nan=False) + "\n"
        with writing(self.path):
            try:
                self.file.write(line)
                self.file.flush()
            except OSError:
                with suppress(OSError):  # it would try the same text again
                    self.file.close()
                raise
        self.lines += 1
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and k != "step"}
        if self.phases and "phase" in values:
            numbers = by_phase(numbers, str(values["phase"]))
        for tracker in self.trackers:
            with writing(f"{self.path.parent} ({type(tracker).__name__})"):
                tracker.log(int(values["step"]), numbers)

    def sync(self) -> None:
        """On the disk itself."""
        with writing(self.path):
            os.fsync(self.file.fileno())

    def close(self, tell: Callable[[str], None] = print) -> None:
        """Never fails: a run that ended by an error says that one, and its log is in metrics.jsonl already."""
        self.file.close()
        for tracker in self.trackers:
            try:
                tracker.close()
            except OSError as error:
                tell(f"{self.path.parent}: {type(tracker).__name__} could not be closed ({reason(error)})")


class SilentLog:
    """The log of a rank that writes nothing; it counts lines as the main rank's does."""

    def __init__(self, lines: int) -> None:
        self.lines = lines

    def write(self, values: dict[str, Any]) -> None:
        self.lines += 1

    def sync(self) -> None:
        """Nothing to write."""

    def close(self, tell: Callable[[str], None]) -> None:
        """Nothing to close."""


def lines_to_keep(run: Path, counted: int, *, tell: Callable[[str], None]) -> int:
    """The lines of metrics.jsonl that a checkpoint counts, if they are all there and whole; what a crash left behind
    them does not matter. A log that was taken away is begun anew. Raises UserError for a damaged one."""
    path = run / "metrics.jsonl"
    if not path.exists():
        tell("metrics.jsonl is gone; the log begins anew")
        return 0
    lines = path.read_bytes().split(b"\n")[:counted]
    whole = next((i for i, line in enumerate(lines) if not _is_object(line)), len(lines))
    if whole == counted:
        return counted
    raise UserError(
        f"{path}, line {whole + 1}: damaged (the checkpoint counts {counted} whole lines); restore the file, or move "
        "it away to begin a new log"
    )


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def read_lines(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
