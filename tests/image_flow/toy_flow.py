"""Entry points of a family like `flow` over the toy model, and its rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from toy_model import ToyModel

from image_gen.evaluate import evaluate as evaluate
from image_gen.evaluate import first_look as first_look
from image_gen.flow.policy import FlowPolicy
from mmrl.data.records import Record
from mmrl.rewards.registry import reward

POLICY = FlowPolicy
PROMPTS = ("a toe", "one oak", "eel", "a boat", "an ode", "oboe")


@reward("toy-bright", tasks=("toy-image",))
def bright(outputs: Any, records: Any, info: Any) -> list[float]:
    return [float(o.mean()) for o in outputs]


@reward("toy-half", tasks=("toy-image",))
def half(outputs: Any, records: Any, info: Any) -> list[float]:
    return [float(o[:, :, : o.shape[2] // 2].mean()) for o in outputs]


@reward("toy-signed", tasks=("toy-image",))
def signed(outputs: Any, records: Any, info: Any) -> list[float]:
    return [float(o.mean()) - 0.6 for o in outputs]


def load_policy(config: Any) -> FlowPolicy:
    model = ToyModel(dtype=torch.float64 if config.model.path == "toy64" else torch.float32)
    if config.model.path not in ("toy", "toy64"):
        model.load(Path(config.model.path))
    return FlowPolicy(model, options=config.model, sampling=config.sampling, inputs=config.inputs)


def builtin(name: str) -> list[Record]:
    prompts = PROMPTS[:4] if name.endswith("train") else PROMPTS[4:]
    return [Record(f"toy-{p.replace(' ', '-')}", "toy-image", p) for p in prompts]


def chance(records: Any, config: Any) -> dict[str, float]:
    return {}


def settings(out: Path, **sections: Any) -> dict[str, Any]:
    """A configuration of this family; mappings are merged into the default ones."""
    base: dict[str, Any] = {
        "family": "toy-flow",
        "recipe": "flow-grpo",
        "recipe_options": {"bounds.low": 0.01, "bounds.high": 0.01},
        "out": str(out),
        "model": {"path": "toy", "adapter": {"kind": "none"}},
        "sampling": {"steps": 4, "eval_steps": 4, "guidance": 2.0},
        "inputs": {"height": 4, "width": 4, "eval_images": 3},
        "data": {"train": "toy:train", "eval": "toy:eval"},
        "rewards": {"components": [{"name": "toy-bright"}]},
        "eval": {"judges": [{"name": "toy-half"}]},
        "train": {"steps": 6, "prompts": 4, "group": 4},
        "optimiser": {"lr": 0.01},
        "checkpoint": {"every": 2},
        "log": {"tensorboard": False},
    }
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base
