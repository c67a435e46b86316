"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from textwrap import wrap
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_EVERY_S = 10.0

_SHOWN = (("reward", "reward", "{:.3f}"), ("kl", "KL", "{:.4f}"), ("tokens_per_s", "tok/s", "{:.0f}"))


def summary_line(values: dict[str, Any]) -> str:
    """`reward 1.234  KL 0.0012  clip 0.0%  tok/s 3120` from one step's metrics."""
    parts = [f"{label} {form.format(values[key])}" for key, label, form in _SHOWN if values.get(key) is not None]
    if "clip_low" in values:
        parts.insert(-1, f"clip {values['clip_low'] + values['clip_high']:.1%}")
    return "  ".join(parts)


class RunProgress:
    """Context manager; `enabled` False prints nothing but messages to stderr.

    max_seconds   training time that may end the run before `total` steps; the total is then estimated as the run goes.
    """

    def __init__(self, total: int, done: int, *, enabled: bool, max_seconds: float | None = None) -> None:
        self.steps, self.max_seconds = total, max_seconds
        self.console = Console(stderr=True, highlight=False)
        self.total, self.done, self.enabled = total, done, enabled
        self.live = enabled and self.console.is_terminal
        self.last_plain = time.perf_counter()
        self.bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("", total=total, completed=done)

    def __enter__(self) -> RunProgress:
        if self.live:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.bar.stop()

    def step(self, values: dict[str, Any], seconds: float = 0.0) -> None:
        """`seconds`: training time so far, over all sessions."""
        self.done += 1
        line = summary_line(values)
        if self.max_seconds is not None:
            rest = max(0.0, self.max_seconds - seconds) / max(seconds, 1e-9)
            self.total = min(self.steps, self.done + math.ceil(self.done * rest))
            line = f"{seconds:.0f} of {self.max_seconds:.0f} s  {line}"
        self.bar.update(self.task, completed=self.done, total=self.total, description=line)
        now = time.perf_counter()
        if self.enabled and not self.live and (now - self.last_plain > PLAIN_EVERY_S or self.done == self.total):
            self.last_plain = now
            print(f"step {self.done}/{self.total}  {line}", file=sys.stderr, flush=True)

    def tell(self, message: str) -> None:
        if not self.console.is_terminal:  # a log file: one line a message
            self.console.print(message, markup=False, soft_wrap=True)
            return
        text = Text("\n".join(wrap(message, self.console.width, subsequent_indent="  ", break_on_hyphens=False)))
        text.highlight_regex(r"^(step \d+: )?warning:", "bold yellow")
        text.highlight_regex(r"^step \d+: cleared:", "bold green")
        self.console.print(text, soft_wrap=True)
