"""Code for a model card: how this package draws with an exported folder, where plain libraries cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PLAIN_PROMPT = "a red apple on a table"


def literal(prompt: str) -> str:
    """The prompt as Python on one line, in ASCII; one that would end the code block of a card is replaced."""
    return ascii(prompt if "`" not in prompt else PLAIN_PROMPT)


def code(family: str, prompt: str, *, alone: bool, sampling: Mapping[str, Any], height: int, width: int) -> str:
    """Python that draws four pictures. alone: the folder holds an adapter. sampling: of that section."""
    settings = ", ".join(f"{name}={value!r}" for name, value in sampling.items())
    lines = [
        "import torch",
        "from torchvision.utils import save_image",
        "",
        f"from image_gen.{family}.config import Adapter, Inputs, Model, Sampling  # installed with mmrl",
        f"from image_gen.{family}.family import load",
        "from mmrl.core.streams import Streams",
        "from mmrl.data.records import Record",
        "from mmrl.training.rollouts import Request",
        "",
        'folder = "."  # this folder',
        f'model = Model(path=folder, adapter=Adapter(kind="{"lora" if alone else "none"}"))',
        f"sampling = Sampling({settings})",
        f'policy = load(model, sampling, Inputs(height={height}, width={width}), device="cpu")',
        f'request = Request(Record("mine", "image", {literal(prompt)}), 4)',
        "pictures = policy.rollout([request], Streams(0, 0), greedy=True).outputs",
        'save_image(torch.stack(pictures), "picture.png")',
    ]
    return "\n".join(lines)
