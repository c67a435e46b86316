"""The figures of the decoding benchmark from known times."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from benchmarks import dlm_case, dlm_decode, harness  # noqa: E402
from dlm.models.tiny import write_tiny  # noqa: E402


def times(**seconds: list[float]) -> dict[str, Any]:
    runs = zip(*seconds.values())
    return harness.summary(
        [{n.replace("sampled", "T = 1"): {"seconds": s, "cpu": s / 2} for n, s in zip(seconds, run)} for run in runs]
    )


def result() -> dict[str, Any]:
    forwards = {name: {"denoising": 64, "total": 64} for name in dlm_decode.DECODERS}
    forwards["block block"]["total"] = 68
    agreement = {f"{cache} {refresh}": 0.5 for cache in ("prefix", "dual") for refresh in (0, 4, 2)}
    return {
        "rows": 1,
        "steps": 64,
        "quick": False,
        "equal": {"parameters": 20_400_000, "steps": 16, "plain": True},
        "agreement": {"distinct": 50, "forwards": forwards, "alone": agreement, **agreement},
        "times": {
            "plain": times(greedy=[8.0, 8.0], sampled=[16.0, 16.0]),
            "full off": times(greedy=[6.0, 6.0], sampled=[6.4, 6.4]),
            "full prefix": times(greedy=[4.0, 4.0]),
            "full dual": times(greedy=[2.0, 2.0]),
            "block off": times(greedy=[5.0, 5.0]),
            "block block": times(greedy=[2.0, 2.0]),
        },
    }


def test_the_page_has_forwards_speed_and_ratios() -> None:
    text = dlm_decode.page(result())
    assert "| plain | 64 | 64 | 8 s (8 - 8) | 16 | 16 s (16 - 16) | 8 |" in text
    assert "| full dual | 64 | 64 | 2 s (2 - 2) | 64 | - | - |" in text
    assert "| block block | 64 | 68 | 2 s (2 - 2) | 64 | - | - |" in text
    assert "| plain / full off | 1.33x (1.33 - 1.33) | 2.50x (2.50 - 2.50) | 1.33x (1.33 - 1.33) |" in text
    assert "| full off / full dual | 3.00x (3.00 - 3.00) | - | 3.00x (3.00 - 3.00) |" in text


def test_the_headline_holds_the_bars() -> None:
    bars = {row[0]: row[2:] for row in dlm_decode.headline(result())}
    assert bars["greedy decoding, full off / full dual, CPU seconds"] == ["3.00x (3.00 - 3.00)", "at least 2x"]
    assert bars["greedy decoding, block off / block block, CPU seconds"] == ["2.50x (2.50 - 2.50)", "at least 2x"]


def test_a_checkpoint_is_decoded_at_each_threshold(tmp_path: Path) -> None:
    write_tiny(tmp_path / "model", "sdar")
    told = dlm_case.checkpoint(
        str(tmp_path / "model"), ["ab", "abcde"], limit=8, thresholds=(0.0, 1.0), cache="block", batch_rows=2
    )
    assert [row["name"] for row in told] == ["one token a forward", "threshold 0", "threshold 1"]
    assert told[0]["forwards"] == told[2]["forwards"] == 8 > told[1]["forwards"]
    assert told[0]["same"] == told[2]["same"] == 1.0  # the same decoding by another rule
    assert told[0]["tpf"] <= 1.0 < told[1]["tpf"]
    assert all(len(row["texts"]) == 2 and row["seconds"] > 0 for row in told)
