"""The shared harness: every side in a fresh process of its own, repeats of the sides alternating, medians and spread.

A benchmark names its sides; a side is a function that prepares its work in its own process and returns it:

    def ours(size: int) -> Callable[[Clock], object]:
        x = torch.randn(size)                 # preparation, not measured
        def work(clock):
            with clock("sort"):               # one measured phase; a work may have several
                x.sort()
        return work

    times = race([Side("ours", "benchmarks.mine:ours", {"size": 10}), Side("peer", ...)], repeats=10)
    times["ours"]["sort"]                     # {"median": s, "low": s, "high": s, "cpu": s, "all": [...]}
    ratio(times["peer"]["sort"], times["ours"]["sort"])
    peak(Side(...))["sort"]                   # MiB: highest resident size in the phase minus that just before it
    call("benchmarks.mine:compare", folder="...")   # any function of JSON arguments, in a fresh process

A side may name another interpreter (`python=`): this file and the module of the side then run there, so both import
what that environment has; this file needs the standard library only.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

#: Freed memory goes back to the system at once: resident memory is then live memory. Only where memory is measured.
_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}

Times = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Side:
    """One implementation. `make` is "module:function"; it is called with `arguments` (JSON) in the fresh process."""

    name: str
    make: str
    arguments: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    python: str = sys.executable


class Clock:
    """`with clock("phase"):` measures seconds, CPU seconds and, if asked, the peak of resident memory."""

    def __init__(self, *, memory: bool) -> None:
        self.memory = memory
        self.found: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        before = _status("VmRSS") if self.memory else 0.0
        if self.memory:
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark VmHWM
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        seconds, spent = time.perf_counter() - wall, time.process_time() - cpu
        self.found[phase] = {"seconds": seconds, "cpu": spent}
        if self.memory:
            self.found[phase] |= {"peak": _status("VmHWM") - before, "before": before}


def _status(name: str) -> float:
    """A line of /proc/self/status in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


# ---- the parent


class Worker:
    """A side in its process; it waits, using no CPU, until it is told to run."""

    def __init__(self, side: Side, *, memory: bool = False, kind: str = "side") -> None:
        self.side = side
        self.errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [side.python, str(Path(__file__).resolve()), "--work"],
            cwd=ROOT,
            env=_environment(side.threads, memory),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.send({"kind": kind, "make": side.make, "arguments": side.arguments, "memory": memory})

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()  # the end of its input ends it
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def send(self, message: object) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._fail()
        return json.loads(line)

    def run(self) -> dict[str, dict[str, float]]:
        self.send("run")
        return self.answer()  # type: ignore[no-any-return]

    def _fail(self) -> None:
        code = self.process.wait()
        self.errors.seek(0)
        said = "\n".join(self.errors.read().splitlines()[-30:])
        raise RuntimeError(f"{self.side.name} ({self.side.make}, {self.side.arguments}) ended with {code}:\n{said}")


def _environment(threads: int, memory: bool) -> dict[str, str]:
    fixed = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    fixed |= {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_MODE": "disabled",
    }
    return os.environ | fixed | (_RETURN_MEMORY if memory else {})


def race(sides: Sequence[Side], *, repeats: int, warmups: int = 2) -> dict[str, Times]:
    """Seconds by side and phase. The sides alternate, so that a busy machine disturbs all of them alike.

    low and high are the quartiles; `cpu` is the median of CPU seconds, which a busy machine disturbs less.
    """
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(side)) for side in sides]
        for worker in workers:
            worker.answer()  # prepared
        runs: list[list[dict[str, dict[str, float]]]] = [[] for _ in sides]
        for i in range(warmups + repeats):
            for found, worker in zip(runs, workers, strict=True):
                one = worker.run()
                if i >= warmups:
                    found.append(one)
    return {side.name: summary(found) for side, found in zip(sides, runs, strict=True)}


def summary(runs: Sequence[dict[str, dict[str, float]]]) -> Times:
    """Median and quartiles of every phase over the runs."""
    out: Times = {}
    for phase in runs[0]:
        seconds = [r[phase]["seconds"] for r in runs]
        low, median, high = quartiles(seconds)
        cpu = [r[phase]["cpu"] for r in runs]
        out[phase] = {"median": median, "low": low, "high": high, "cpu": statistics.median(cpu)}
        out[phase] |= {"all": seconds, "all_cpu": cpu}
    return out


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def ratio(slow: dict[str, Any], fast: dict[str, Any]) -> dict[str, float]:
    """How many times faster `fast` is: ratio of the medians, quartiles of the ratios of paired repeats, CPU seconds."""
    paired = [a / b for a, b in zip(slow["all"], fast["all"], strict=True)]
    low, _, high = quartiles(paired)
    return {"median": slow["median"] / fast["median"], "low": low, "high": high, "cpu": slow["cpu"] / fast["cpu"]}


def peak(side: Side, *, warmups: int = 1, repeats: int = 3) -> dict[str, dict[str, float]]:
    """{"phase": {"peak", "before"}} in MiB, median of `repeats`; memory is given back to the system when freed."""
    with Worker(side, memory=True) as worker:
        worker.answer()
        runs = [worker.run() for _ in range(warmups + repeats)][warmups:]
    return {p: {k: statistics.median(r[p][k] for r in runs) for k in ("peak", "before")} for p in runs[0]}


def call(make: str, *, python: str = sys.executable, threads: int = 1, **arguments: Any) -> Any:
    """The JSON result of "module:function" called in a fresh process."""
    with Worker(Side(make, make, arguments, threads, python), kind="call") as worker:
        return worker.answer()


def versions(packages: Sequence[str] = ("torch", "transformers"), python: str = sys.executable) -> dict[str, str]:
    """Versions in the environment of `python`, and the processor's model name."""
    return call("benchmarks.harness:_versions", python=python, packages=list(packages))  # type: ignore[no-any-return]


def _versions(packages: list[str]) -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    cpu = Path("/proc/cpuinfo")
    names = [x.split(":", 1)[1].strip() for x in cpu.read_text().splitlines() if x.startswith("model name")]
    return found | {"cpu": f"{names[0] if names else platform.machine()}, {os.cpu_count()} logical"}


def has(package: str) -> bool:
    """Is a peer installed here?"""
    return importlib.util.find_spec(package) is not None


# ---- results and pages


def save(name: str, payload: dict[str, Any], folder: Path = RESULTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
    return path


def read(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def insert(page: Path, marker: str, text: str) -> None:
    """Replace what stands between `<!-- bench:marker -->` and `<!-- /bench:marker -->`."""
    begin, end = f"<!-- bench:{marker} -->", f"<!-- /bench:{marker} -->"
    old = page.read_text(encoding="utf-8")
    if old.count(begin) != 1 or old.count(end) != 1:
        raise RuntimeError(f"{page.name}: expected one {begin} and one {end}")
    head, rest = old.split(begin)
    page.write_text(f"{head}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def show_seconds(t: dict[str, Any]) -> str:
    """`0.123 (0.120 - 0.130)`, in s, ms or µs by size."""
    unit, scale = next((u, s) for u, s, limit in _UNITS if t["median"] * s >= limit)
    low, median, high = (f"{t[k] * scale:.3g}" for k in ("low", "median", "high"))
    return f"{median} {unit} ({low} - {high})"


_UNITS = (("s", 1.0, 0.1), ("ms", 1e3, 0.1), ("µs", 1e6, 0.0))


def show_ratio(r: dict[str, float]) -> str:
    return f"{r['median']:.2f}x ({r['low']:.2f} - {r['high']:.2f})"


# ---- the worker


def _work() -> None:
    """Prepare, then one run for every line of input. Results go to the real stdout, prints of libraries to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path[0] = str(ROOT)  # instead of the folder of this file: modules are imported as benchmarks.<name>
    order = json.loads(sys.stdin.readline())
    module, function = order["make"].split(":")
    made: Any = getattr(importlib.import_module(module), function)(**order["arguments"])

    def reply(message: object) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    if order["kind"] == "call":
        reply(made)
        return
    reply("ready")
    work: Callable[[Any], object] = made
    for _ in sys.stdin:
        clock = Clock(memory=order["memory"])
        work(clock)
        reply(clock.found)


if __name__ == "__main__":
    if sys.argv[1:] != ["--work"]:
        sys.exit("this file is the harness; run: python benchmarks/run.py")
    _work()
