"""One channel's optimiser: schedules, and states nested as quantised optimisers hand them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrl.config import Optimiser
from mmrl.training import optim
from mmrl.training.optim import ChannelOptimiser

NESTED = "__bnb_optimizer_quant_state__"


class Nesting(torch.optim.AdamW):
    """Hands out its moments inside a dict of their own, as bitsandbytes does, and takes them back only so."""

    def state_dict(self) -> dict[str, Any]:
        plain = super().state_dict()
        states = {}
        for index, state in plain["state"].items():
            moments = {k: state[k] for k in ("exp_avg", "exp_avg_sq")}
            states[index] = {"step": state["step"], "bits": 8, NESTED: {**moments, "blocks": 256}}
        return {**plain, "state": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = {}
        for index, state in state_dict["state"].items():
            assert set(state) == {"step", "bits", NESTED} and state["bits"] == 8
            inner = dict(state[NESTED])
            assert inner.pop("blocks") == 256
            states[index] = {"step": state["step"], **inner}
        super().load_state_dict({**state_dict, "state": states})


def steps(optimiser: ChannelOptimiser, n: int) -> None:
    for k in range(n):
        for p in optimiser.parameters:
            p.grad = torch.full_like(p, 0.1 * (k + 1))
        optimiser.step(0.0)


def test_a_nested_state_is_saved_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "_optimiser_class", lambda kind: Nesting)
    config = Optimiser(kind="adamw8bit", lr=0.1)
    first, second = (ChannelOptimiser([torch.nn.Parameter(torch.ones(3))], config, 10) for _ in range(2))
    steps(first, 3)
    tensors, plain = first.state_dict()
    assert f"0.{NESTED}/exp_avg" in tensors
    assert plain["values"] == {"0.bits": 8, f"0.{NESTED}/blocks": 256}
    save_file({k: v.clone() for k, v in tensors.items()}, tmp_path / "t.safetensors")
    second.load_state_dict(load_file(tmp_path / "t.safetensors"), json.loads(json.dumps(plain)))
    with torch.no_grad():
        second.parameters[0].copy_(first.parameters[0])
    assert second.steps == 3
    steps(first, 1)
    steps(second, 1)
    assert torch.equal(first.parameters[0], second.parameters[0])


def test_the_rate_told_is_the_one_applied() -> None:
    optimiser = ChannelOptimiser([torch.nn.Parameter(torch.ones(1))], Optimiser(lr=1.0, warmup=2, schedule="linear"), 6)
    told = [optimiser.last_lr]
    applied = []
    for _ in range(6):
        steps(optimiser, 1)
        applied.append(optimiser.inner.param_groups[0]["lr"])
        told.append(optimiser.last_lr)
    assert applied == told[1:] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert told[0] == 0.5
    optimiser.step(float("nan"))  # dropped
    assert optimiser.last_lr == 0.25
