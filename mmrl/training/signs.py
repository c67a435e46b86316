"""What a sign of trouble is, and the shapes a series of metrics can take that make one. Loads no torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

FIRST = 10  # values kept from the start of a run, to compare with
RECENT = 21  # newest values kept


@dataclass(frozen=True)
class Sign:
    """One line of a run's story: something looks wrong from `step` on, or (`cleared`) does so no longer.

    metric   the curve it shows on.
    """

    step: int
    kind: str
    metric: str
    what: str
    advice: str
    cleared: bool = False

    def line(self) -> str:
        """As a person reads it in the terminal."""
        if self.cleared:
            return f"step {self.step}: cleared: {self.what}"
        return f"step {self.step}: warning: {self.what}. Advice: {self.advice}"

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Series:
    """One metric so far: its first values, its newest, and how many there were. Values that are missing or not finite
    never enter."""

    first: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    seen: int = 0

    def add(self, value: float) -> None:
        if len(self.first) < FIRST:
            self.first.append(value)
        self.recent = [*self.recent, value][-RECENT:]
        self.seen += 1

    def mean(self, window: int) -> float:
        """Of the newest `window` values."""
        return statistics.fmean(self.recent[-window:])

    def start(self, window: int) -> float:
        """Mean of the first `window` values."""
        return statistics.fmean(self.first[:window])

    def usual(self) -> float:
        """Median of the values before the newest one."""
        return statistics.median(self.recent[:-1])


Test = Callable[[Series], bool]


def above(limit: float, *, window: int = 1) -> Test:
    """The mean of the last `window` values is above `limit`."""
    return lambda s: s.seen >= window and s.mean(window) > limit


def below(limit: float, *, window: int = 1) -> Test:
    return lambda s: s.seen >= window and s.mean(window) < limit


def outside(factor: float) -> Test:
    """The newest value is above `factor` or below 1 / `factor`."""
    return lambda s: not 1 / factor <= s.recent[-1] <= factor


def grown(factor: float, *, window: int, floor: float = 0.0) -> Test:
    """The mean of the last `window` values is more than `factor` times that of the first, taken as at least `floor`."""
    return lambda s: s.seen >= 2 * window and s.mean(window) > factor * max(floor, s.start(window))


def shrunk(factor: float, *, window: int) -> Test:
    """The mean of the last `window` values is less than 1 / `factor` of that of the first."""
    return lambda s: s.seen >= 2 * window and s.mean(window) * factor < s.start(window)


def jumped(factor: float, *, least: float = 0.0, after: int = 10) -> Test:
    """The newest value is above `least` and more than `factor` times the median of those before (at least `after`)."""

    def test(s: Series) -> bool:
        if len(s.recent) <= after or s.usual() <= 0:
            return False
        return s.recent[-1] > max(least, factor * s.usual())

    return test


def counted_up(s: Series) -> bool:
    """A count since the start of the run rose; the first value counts from 0."""
    return s.recent[-1] > (s.recent[-2] if len(s.recent) > 1 else 0)
