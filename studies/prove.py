"""Learning studies: does the method learn, and is it the reward that it learns from?

    python studies/prove.py [--study vlm] [--seeds 0 1 2 3 4] [--jobs 2] [--out runs/prove] [--steps N]

Every run is a process of `mmrl train`. Stopped or killed, the same command goes on where it was. A whole study (all
seeds of its file, no --steps) is published: studies/results/NAME.json, docs/figures/prove_NAME.svg and its part of
docs/results.md; anything else is a trial, whose results stay in --out. Exit code: 0, 1 when a bound is broken, 2 for
bad input, 130 or 143 when stopped. Needs a system with file locks (Linux, macOS).
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import study_figure
import study_file
import study_page
from study_jobs import Jobs, write_json
from study_results import collect

from mmrl.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "results.md"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prove.py", description="A learning study over seeds, with controls.")
    parser.add_argument("--study", default="vlm", help="name of a file in studies/, or a YAML file")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of the study")
    parser.add_argument("--jobs", type=int, default=2, help="seeds that run at once (default 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/prove"), help="where the runs go (default runs/prove)")
    parser.add_argument("--steps", type=int, help="a trial: steps of the runs without a budget")
    found = parser.parse_args(argv)
    for name, least in (("jobs", 1), ("steps", 1)):
        value = getattr(found, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    if found.seeds and (min(found.seeds) < 0 or len(set(found.seeds)) < len(found.seeds)):
        raise UserError("--seeds: give different numbers from 0 on")
    return found


def prove(argv: list[str] | None = None) -> int:
    asked = arguments(argv)
    slug, study = study_file.read(asked.study)
    seeds = sorted(asked.seeds or study.seeds)
    whole = seeds == sorted(study.seeds) and asked.steps is None
    folder = asked.out / slug
    jobs = Jobs(study, seeds, folder, min(asked.jobs, len(seeds)), asked.steps, tell=say)
    finished = sum((folder / f"seed-{s}" / name / "summary.json").is_file() for s in seeds for name in study.arms)
    size = f"{len(seeds)} seed{'s' * (len(seeds) > 1)} x {len(study.arms)}"
    say(f"{study.title}: {jobs.total} runs ({size}), {finished} done already; {folder}")
    jobs.run()
    command = "python studies/prove.py" + (f" {shlex.join(_typed(argv))}" if _typed(argv) else "")
    results = collect(study, folder, seeds, command=command)
    publish(results, slug, folder, whole=whole)
    return 0 if all(b["holds"] for b in results["bounds"]) else 1


def publish(results: dict[str, Any], slug: str, folder: Path, *, whole: bool) -> None:
    """Write the results into the run folder; those of a whole study also where people look."""
    write_json(folder / "results.json", results)
    study_figure.draw(results, folder / "results.svg")
    text = study_page.block(results, figure="results.svg")
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    say("\n" + text + "\n")
    if not whole:
        say(f"a trial: {folder}/results.md, .json and .svg; the documents stay as they are")
        return
    figure = ROOT / "docs" / "figures" / f"prove_{slug}.svg"
    study_page.place(DOCUMENT, slug, study_page.block(results, figure=f"figures/{figure.name}"))
    write_json(ROOT / "studies" / "results" / f"{slug}.json", results)
    study_figure.draw(results, figure)
    say(f"written: docs/results.md, studies/results/{slug}.json, docs/figures/{figure.name}")


def _typed(argv: list[str] | None) -> list[str]:
    return sys.argv[1:] if argv is None else argv


def say(line: str) -> None:
    print(line, flush=True)


class Terminated(KeyboardInterrupt):
    """SIGTERM; ends the study as Ctrl-C does."""


def _stop_once(signum: int, frame: FrameType | None) -> None:
    """The first signal ends the study; those that follow while the runs save are passed over."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise Terminated if signum == signal.SIGTERM else KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, _stop_once)
    try:
        return prove(argv)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("stopped; the runs have saved, the same command goes on", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130


if __name__ == "__main__":
    sys.exit(main())
