"""The log of a run: metrics.jsonl (one flushed line a step, rewound on resume) and optional trackers."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mmrl.config import Logging
from mmrl.errors import UserError


class Tracker(Protocol):
    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class External:
    """wandb or trackio: the same three calls."""

    def __init__(self, package: str, project: str, run: Path, config: dict[str, Any]) -> None:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"log.{package}: the package {package} is not installed; pip install {package}, or set it false"
            )
        self.module = importlib.import_module(package)
        self.module.init(project=project, name=run.name, config=config)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.module.log(values, step=step)

    def close(self) -> None:
        self.module.finish()


def _clean(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


class MetricsLog:
    """Appends lines; `lines` is the position a checkpoint remembers."""

    def __init__(self, run: Path, config: Logging, *, keep_lines: int, settings: dict[str, Any]) -> None:
        self.path = run / "metrics.jsonl"
        self._rewind(keep_lines)
        self.lines = keep_lines
        self.file = self.path.open("a")
        self.trackers: list[Tracker] = []
        if config.tensorboard:
            self.trackers.append(TensorBoard(run / "tensorboard"))
        for package in ("wandb", "trackio"):
            if getattr(config, package):
                self.trackers.append(External(package, config.project, run, settings))

    def _rewind(self, lines: int) -> None:
        if not self.path.exists():
            return
        kept = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[:lines]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, self.path)

    def write(self, values: dict[str, Any]) -> None:
        self.file.write(json.dumps({k: _clean(v) for k, v in values.items()}) + "\n")
        self.file.flush()
        self.lines += 1
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and k != "step"}
        for tracker in self.trackers:
            tracker.log(int(values["step"]), numbers)

    def close(self) -> None:
        self.file.close()
        for tracker in self.trackers:
            tracker.close()


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
