"""The harness, and every benchmark's own side in its quick form, so that `make bench` does not rot. Needs no peer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from benchmarks import harness, roofline, run  # noqa: E402

SLEEPING = "tests.benchmarks.sides:sleeping"


def test_sides_alternate_in_processes_of_their_own_and_the_ratio_is_theirs() -> None:
    pair = [
        harness.Side("short", SLEEPING, {"seconds": 0.01}),
        harness.Side("long", SLEEPING, {"seconds": 0.05}),
    ]
    times = harness.race(pair, repeats=3, warmups=1)
    assert len(times["short"]["sleep"]["all"]) == 3
    assert 0.01 <= times["short"]["sleep"]["median"] < times["long"]["sleep"]["median"]
    found = harness.ratio(times["long"]["sleep"], times["short"]["sleep"])
    assert found["low"] <= found["high"] and 1 < found["median"] < 6


def test_peak_is_what_the_phase_adds() -> None:
    found = harness.peak(harness.Side("x", SLEEPING, {"seconds": 0.0, "mebibytes": 64}), repeats=1)
    assert 60 < found["sleep"]["peak"] < 80
    assert found["sleep"]["before"] > 5


def test_a_side_that_fails_is_named_with_its_own_error() -> None:
    with pytest.raises(RuntimeError, match="(?s)x .*sleeping.*unexpected keyword argument 'minutes'") as caught:
        harness.race([harness.Side("x", SLEEPING, {"minutes": 1})], repeats=1)
    assert "Traceback" in str(caught.value)


def test_a_call_returns_what_the_function_returns() -> None:
    assert harness.call("benchmarks.harness:quartiles", values=[1.0, 2.0, 3.0]) == [1.5, 2.0, 2.5]


def test_pages_are_filled_between_their_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- bench:x -->\nold\n<!-- /bench:x -->\nb\n")
    harness.insert(page, "x", "new\n")
    harness.insert(page, "x", "newer\n")
    assert page.read_text() == "a\n<!-- bench:x -->\nnewer\n<!-- /bench:x -->\nb\n"
    with pytest.raises(RuntimeError, match="bench:y"):
        harness.insert(page, "y", "new")


def test_numbers_are_shown_in_fitting_units() -> None:
    times = {"median": 0.0123, "low": 0.012, "high": 0.0131}
    assert harness.show_seconds(times) == "12.3 ms (12 - 13.1)"
    assert harness.show_ratio({"median": 2.0, "low": 1.9, "high": 2.25}) == "2.00x (1.90 - 2.25)"
    assert harness.table(["a", "b"], [["x", "1"]]) == "| a | b |\n|---|---:|\n| x | 1 |"


def test_the_page_has_a_place_for_every_benchmark() -> None:
    page = run.PAGE.read_text()
    for name in ("headline", *run.available()):
        assert page.count(f"<!-- bench:{name} -->") == 1 == page.count(f"<!-- /bench:{name} -->"), name


def test_products_of_a_layer_counted_by_hand() -> None:
    from types import SimpleNamespace as Namespace

    text = Namespace(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=4,
        num_key_value_heads=1,
        intermediate_size=16,
        vocab_size=100,
    )
    config = Namespace(get_text_config=lambda: text)
    found = roofline.flops(roofline.text_products(config, 10, 2, 3))
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # weights that multiply a token
    assert found["prompt linear"] == 6 * 10 * layer
    assert found["completion linear"] == 6 * 2 * 2 * layer  # two rows, the last of three tokens is not run
    assert found["output layer"] == 6 * 2 * 3 * 8 * 100
    vision = Namespace(window_size=56, patch_size=14)
    assert sorted(roofline.windows(36, vision)) == [4, 8, 8, 16]


@pytest.mark.parametrize("name", sorted(run.available()))
def test_each_benchmark_runs_in_its_quick_form(name: str) -> None:
    out = subprocess.run(
        [sys.executable, "benchmarks/run.py", "--quick", "--only", name],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert "|" in out.stdout


def test_results_are_whole() -> None:
    for path in sorted(harness.RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        assert result["versions"]["torch"] and not result["quick"], path.name
