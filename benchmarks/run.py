"""All benchmarks, or some:  python benchmarks/run.py [--only step cost ...] [--quick] [--missing]

A benchmark is a module of this folder with

    NAMES    the packages whose versions it reports
    measure(quick: bool) -> dict      runs; JSON. Quick: seconds, our own side only, small sizes
    page(result: dict) -> str         Markdown for docs/benchmarks.md, between its markers
    headline(result: dict) -> list    rows (what, size, ratio, target) of the first table of that page

Results are written to benchmarks/results/<name>.json as each benchmark ends, and the page is filled from these files,
so that a part can be run again without the rest. A peer that is not installed is left out, saying so.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import harness  # noqa: E402

ORDER = (
    "step",
    "cost",
    "roofline",
    "head",
    "token_weights",
    "video_input",
    "advantages",
    "parsing",
    "flow",
    "dlm_decode",
    "dlm_shipped",
)
PAGE = harness.ROOT / "docs" / "benchmarks.md"


def available() -> dict[str, Any]:
    found = {}
    for name in ORDER:
        if (harness.ROOT / "benchmarks" / f"{name}.py").exists():
            module = import_module(f"benchmarks.{name}")
            if hasattr(module, "measure"):
                found[name] = module
    return found


def fill_page(modules: dict[str, Any], page: Path) -> None:
    """Write every known result into the page."""
    rows: list[list[str]] = []
    for name, module in modules.items():
        result = harness.read(name)
        if result is not None:
            harness.insert(page, name, f"{module.page(result)}\n\n{_footnote(result)}")
            rows += [list(row) for row in module.headline(result)]
    harness.insert(page, "headline", harness.table(["what", "size", "measured", "target"], rows))


def _footnote(result: dict[str, Any]) -> str:
    return (
        "Measured with "
        + ", ".join(f"{k} {v}" for k, v in result["versions"].items() if k != "cpu")
        + (f"; {result['versions']['cpu']}; took {result['took']:.0f} s.")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of: " + ", ".join(ORDER))
    parser.add_argument("--missing", action="store_true", help="only those without a result file")
    parser.add_argument("--quick", action="store_true", help="seconds, small, our own side; writes nothing")
    parser.add_argument("--page", action="store_true", help="run nothing; fill the page from the result files")
    options = parser.parse_args()
    modules = available()
    unknown = sorted(set(options.only or []) - set(modules))
    if unknown:
        parser.error(f"--only {unknown[0]}: valid are {', '.join(modules)}")
    for name, module in modules.items():
        chosen = not options.only or name in options.only
        if not chosen or options.page or (options.missing and harness.read(name) is not None):
            continue
        print(f"{name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
        began = time.perf_counter()
        result = module.measure(options.quick)
        took = time.perf_counter() - began
        result = {"versions": harness.versions(module.NAMES), "took": took, "quick": options.quick} | result
        print(module.page(result) + f"\n({took:.0f} s)\n", flush=True)
        if not options.quick:
            harness.save(name, result)
    if not options.quick:
        fill_page(modules, PAGE)
        print(f"written: {PAGE.relative_to(harness.ROOT)}")


if __name__ == "__main__":
    main()
