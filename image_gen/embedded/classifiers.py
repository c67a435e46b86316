"""The two small networks that look at generated digits: `reward` is trained on, `judge` only measures.

Each reads cells [M, 8, 8] with values 0 to 1 and answers with logits over the ten digits and "nothing readable",
[M, 11].
They differ in architecture, seed and data: the parts `reward` and `judge` of the digits, which share no picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from image_gen.embedded.canvas import EMPTY, SIDE

CLASSES = EMPTY + 1
FOLDER = Path(__file__).with_name("weights")
_ROWS = 4096  # cells of one forward


class RewardNet(nn.Module):
    """Convolutions of 3 x 3, ReLU, two poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(256, CLASSES),
        )

    def forward(self, cell_m: Tensor) -> Tensor:
        logit: Tensor = self.layers(2 * cell_m[:, None] - 1)
        return logit


class JudgeNet(nn.Module):
    """One convolution of 5 x 5 without padding, then two wide dense layers, GELU; no pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 24, 5),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(24 * 16, 192),
            nn.GELU(),
            nn.Dropout(0.3),
            nn.Linear(192, 128),
            nn.GELU(),
            nn.Linear(128, CLASSES),
        )

    def forward(self, cell_m: Tensor) -> Tensor:
        logit: Tensor = self.layers(2 * cell_m[:, None] - 1)
        return logit


NETS: dict[str, type[nn.Module]] = {"reward": RewardNet, "judge": JudgeNet}


@cache
def network(name: str) -> nn.Module:
    """The shipped network `reward` or `judge`, on the CPU, eval mode, without gradient."""
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, then replaced: no state of a run may feel it
        net = NETS[name]()
    net.load_state_dict(load_file(FOLDER / f"{name}.safetensors"))
    return net.eval().requires_grad_(False)


def grey(output: Any) -> Tensor:
    """One output, a float tensor [3, H, W] in [0, 1] or a PIL picture, as [H, W] in [0, 1]; NaN becomes paper."""
    from image_gen.rewards.pictures import to_array

    return torch.from_numpy(to_array(output).mean(-1) / 255.0).float()


@torch.no_grad()
def probabilities(name: str, outputs: Sequence[Any], *, cells: int) -> Tensor:
    """Class probabilities of every cell of every picture, [N, cells, 11]. Detached.

    Raises ValueError for pictures that are not `cells` cells wide."""
    grey_n = [grey(output) for output in outputs]
    for picture in grey_n:
        if picture.shape != (SIDE, SIDE * cells):
            raise ValueError(f"pictures of {SIDE}x{SIDE * cells} are scored, got {picture.shape[0]}x{picture.shape[1]}")
    if not grey_n:
        return torch.zeros(0, cells, CLASSES)
    cell_m = torch.cat([torch.stack(picture.split(SIDE, 1)) for picture in grey_n])
    logit_m = torch.cat([network(name)(part) for part in cell_m.split(_ROWS)])
    return logit_m.softmax(-1).unflatten(0, (-1, cells))
