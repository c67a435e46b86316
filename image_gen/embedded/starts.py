"""The supervised loop that makes the shipped weights: resumable, and the same from wherever it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

LR = 2e-3
WARMUP = 20

#: (step) -> loss with gradient.
Loss = Callable[[int], Tensor]


def train(
    name: str,
    module: nn.Module,
    loss: Loss,
    *,
    seed: Callable[[int], int],
    steps: int,
    decay: bool,
    work: Path,
    after: str = "",
    keep_every: int = 50,
) -> None:
    """AdamW for `steps` steps, from its own state in `work` if there is one, else from the last one of `after`.

    seed: of a step's random numbers, which depend on nothing else. decay: the learning rate falls to 0 along a line.
    The state is kept in `work` every `keep_every` steps.
    """
    optimiser = torch.optim.AdamW(module.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01)
    file, first = work / f"{name}.pt", 0
    known = [one for one in (file, work / f"{after}.pt") if one.is_file()]
    if known:
        state = torch.load(known[0], weights_only=True)
        first = state["step"]
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
    started, losses = time.monotonic(), list[float]()
    module.train()
    for step in range(first, steps):
        torch.manual_seed(seed(step))
        rate = LR * min(1.0, (step + 1) / WARMUP) * (1 - step / steps if decay else 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate
        value = loss(step)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        losses.append(value.item())
        if (step + 1) % keep_every == 0 or step + 1 == steps:
            rest = {"module": module.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save({"step": step + 1, **rest}, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
            seconds = (time.monotonic() - started) / (step + 1 - first)
            print(f"{name} {step + 1}/{steps}: loss {np.mean(losses):.4f}, {seconds:.3f} s a step")
            losses.clear()
    module.eval()


def spread(every: list[dict[str, float]]) -> str:
    """ "judge 0.480 +- 0.010, ...": mean over the sampling seeds and their standard deviation."""
    return ", ".join(
        f"{key} {np.mean([e[key] for e in every]):.3f} +- {np.std([e[key] for e in every], ddof=1):.3f}"
        for key in every[0]
    )


def check_size(folder: Path, *, most: int) -> None:
    """Raises SystemExit where the files of the folder are larger than `most` bytes together."""
    size = sum(f.stat().st_size for f in folder.rglob("*.*") if f.is_file())
    print(f"{folder}: {size} bytes")
    if size > most:
        raise SystemExit(f"larger than the {most} bytes that the package allows")
