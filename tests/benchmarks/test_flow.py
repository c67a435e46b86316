"""The figures of the image benchmark from known times, and the adapter to a checkout of flow_grpo on a made-up one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from benchmarks import flow, flow_case, flow_peer, harness  # noqa: E402


def times(**seconds: list[float]) -> dict[str, Any]:
    """Every phase with these seconds, and twice as many of the CPU."""
    runs = zip(*seconds.values())
    return harness.summary([{n: {"seconds": s, "cpu": 2 * s} for n, s in zip(seconds, run)} for run in runs])


def result(peer: dict[str, Any] | None = None) -> dict[str, Any]:
    windows = times(**{"9": [9.0, 18.0, 9.0], "2": [2.0, 4.0, 2.2], "5": [6.0, 12.0, 6.0]})
    return {
        "rows": 16,
        "steps": 10,
        "pixels": 64,
        "threads": 1,
        "parameters": 90_000,
        "gaps": {"4.5": {"states": 2e-6, "pictures": 1e-7, "largest state": 4.0}},
        "rollout": {"4.5": times(rollout=[1.02, 2.04, 1.03], bare=[1.0, 2.0, 1.0])},
        "windows": {"4.5": windows},
        "memory": {"10": {"peak": 200.0, "states": 2.5}, "40": {"peak": 210.0, "states": 10.0}},
        "peer": peer,
    }


def test_ratios_are_of_neighbouring_turns() -> None:
    found = flow_case.paired({"all": [1.0, 10.0, 2.0]}, {"all": [1.0, 5.0, 2.0]})
    assert found == {"low": 1.0, "median": 1.0, "high": 1.5}
    wall, cpu = flow.over(result()["rollout"]["4.5"])
    assert wall["median"] == cpu["median"] == pytest.approx(1.02)


def test_a_window_that_costs_its_share_is_one() -> None:
    windows = result()["windows"]["4.5"]
    assert flow.per_step(windows, "2")[0]["median"] == pytest.approx(1.0)  # 2 of 9 steps in 2/9 of the time
    assert flow.per_step(windows, "5")[1]["median"] == pytest.approx(6 / 9 * 9 / 5)
    assert flow.per_step(windows, "9")[0] == {"low": 1.0, "median": 1.0, "high": 1.0}


def test_the_headline_holds_every_bar_and_says_that_the_peer_is_absent() -> None:
    rows = flow.headline(result())
    bars = {row[0]: row[2:] for row in rows}
    assert bars["flow rollout over its bare calls, CPU seconds"] == ["1.020x (1.020 - 1.025)", "at most 1.03x"]
    assert bars["flow update, window of 2: a step's CPU seconds against all steps'"][1] == "0.85x to 1.15x"
    assert bars["peak of the flow update at T = 40 against T = 10"] == ["1.050x", "at most 1.15x"]
    assert [row[2] for row in rows if "flow_grpo" in row[0]] == ["peer absent"] * 2
    assert not any("window of 9" in row[0] for row in rows)
    text = flow.page(result())
    assert "| 40 | 210.0 | 1.050x | 10.0 |" in text and "flow_grpo: peer absent" in text


def test_the_peers_rows() -> None:
    both = {"mmrl": [1.0, 1.0], "flow_grpo": [1.5, 1.7], "old pass": [0.3, 0.3]}
    both |= {"rollout mmrl": [1.0, 1.0], "rollout flow_grpo": [1.0, 1.0]}
    formula = {f"{what} {who}": [0.1, 0.1] for what in ("draw", "score") for who in ("mmrl", "flow_grpo")}
    gaps = dict.fromkeys(("state", "log-prob", "loss", "gradient", "outside"), 1e-7)
    peer = {"commit": "abc", "gaps": {"1.0": gaps}, "updates": {"1.0": times(**both)}, "steps": {}}
    peer["steps"]["4 x 32 x 32"] = times(**formula)
    text = flow.page(result(peer))
    assert "| update, guidance 1 | 1 s (1 - 1) | 1.6 s (1.55 - 1.65) | 1.60x (1.55 - 1.65) |" in text
    assert "| draw a step, 4 x 32 x 32 | 10 ms (10 - 10) |" in text  # a measured run holds 10 calls
    assert ["flow update, flow_grpo / mmrl", "tiny SD3, batch 16, T = 10, guidance 1", "1.60x (1.55 - 1.65)", "-"] in (
        flow.headline(result(peer))
    )


def test_turns_begin_with_another_work_each_time() -> None:
    order: list[str] = []
    work = flow_case.taking_turns({name: lambda name=name: order.append(name) for name in "abc"})  # type: ignore[misc]
    for _ in range(3):
        work(harness.Clock(memory=False))
    assert "".join(order) == "abcbcacab"


def test_a_checkout_is_named_by_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOW_GRPO", raising=False)
    assert flow_peer.checkout() is None
    monkeypatch.setenv("FLOW_GRPO", str(tmp_path))
    with pytest.raises(SystemExit, match="no flow_grpo/diffusers_patch/sd3_sde_with_logprob.py there; name a checkout"):
        flow_peer.checkout()


def test_one_function_of_its_script_runs_without_what_the_script_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "flow_grpo" / "diffusers_patch").mkdir(parents=True)
    (tmp_path / flow_peer.PATCH).write_text("def sde_step_with_logprob(x):\n    return x + 1\n")
    script = "import no_such_logger\ndef compute_log_prob(x):\n    return sde_step_with_logprob(torch.tensor(x))\n"
    (tmp_path / flow_peer.SCRIPT).write_text(script)
    monkeypatch.setenv("FLOW_GRPO", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("flow_grpo", "flow_grpo.diffusers_patch", "flow_grpo.diffusers_patch.sd3_sde_with_logprob"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert int(flow_peer._log_prob()(2)) == 3
    assert flow_peer.commit() == "unknown commit"
    for name in [n for n in sys.modules if n.partition(".")[0] == "flow_grpo"]:
        del sys.modules[name]
