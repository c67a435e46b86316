"""Entry points of the toy family with two channels."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from toy import records, zeros
from toy_two import TwoChannels

from mmrl.core.streams import Streams
from mmrl.rewards.registry import reward
from mmrl.selection.request import Request

POLICY = TwoChannels


@reward("zeros-two", tasks=("toy",))
def zeros_two(outputs, records, info):
    """Share of zeros; all answers to r1 are worth the same."""
    return [0.5 if r.id == "r1" else v for r, v in zip(records, zeros(outputs, records, info), strict=True)]


def load_policy(config):
    policy = TwoChannels(
        cut=config.model.cut, every=config.model.every, explore=config.sampling.explore, steps=config.sampling.steps
    )
    if config.model.path != "toy-two":
        policy.load_state_dict(load_file(Path(config.model.path) / "model.safetensors"))
    return policy


def evaluate(policy, held_out, config):
    asked = [Request(record=r, n=8) for r in held_out]
    out = policy.rollout(asked, Streams(config.seed, 0, "eval"), greedy=True)
    return {"reward": float(torch.tensor(zeros(out.outputs, out.records, out.info)).mean())}


def builtin(name):
    return records(6, seed=0 if name.endswith("train") else 1)


def chance(held_out, config):
    return {"reward": 1.0}
