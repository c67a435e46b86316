"""Small run folders of a masked image model with a learned schedule, written from literal numbers and real digits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from drawn_runs import DIGITS, PROMPTS
from PIL import Image

from image_gen.masked.drawing import filling
from mmrl.data.digits import load_digits

STEPS = (0, 20, 40)
COUNTS = (2, 4, 8, 16)
JUDGE = {
    "before": (0.25, 0.375, 0.5, 0.5625),
    "base": (0.375, 0.5, 0.625, 0.6875),
    "after": (0.4375, 0.625, 0.75, 0.75),
}
DIVERSITY = {
    "before": (0.125, 0.1875, 0.25, 0.25),
    "base": (0.125, 0.1875, 0.1875, 0.25),
    "after": (0.125, 0.15, 0.2, 0.2),
}
CONFIG = "family: masked\nrecipe: co-grpo\nseed: {seed}\neval:\n  metric: judge\n"
T = 8


def curve(
    judge: tuple[float, ...], diversity: tuple[float, ...], prefix: str = "", gain: float = 0.0
) -> dict[str, float]:
    found = {f"{prefix}judge@{k}": value + gain for k, value in zip(COUNTS, judge, strict=True)}
    return found | {f"{prefix}diversity@{k}": value for k, value in zip(COUNTS, diversity, strict=True)}


def evaluations(gain: float = 0.0) -> tuple[dict[str, Any], dict[str, Any]]:
    start = curve(JUDGE["before"], DIVERSITY["before"]), curve(JUDGE["before"], DIVERSITY["before"], "base/")
    before = {"reward": 0.5, "judge": 0.5, "diversity": 0.25, **start[0], **start[1], "steps_to_base_quality": 8}
    end = curve(JUDGE["base"], DIVERSITY["base"], "base/"), curve(JUDGE["after"], DIVERSITY["after"], gain=gain)
    after = {"reward": 0.75, "judge": 0.75 + gain, "diversity": 0.2, **end[0], **end[1], "steps_to_base_quality": 4}
    return before, after


def write_filled(run: Path, *, seed: int = 0, gain: float = 0.0, spread: float = 0.0, **summary: Any) -> Path:
    """`gain`: of the judge after; `spread`: of the schedule over canvases; `summary`: in place of what it holds."""
    (run / "samples" / "images").mkdir(parents=True)
    before, after = evaluations(gain)
    rows: list[dict[str, Any]] = [{"step": 0} | {f"eval/{k}": v for k, v in before.items() if k[:5] != "steps"}]
    for s in range(1, 41):
        tokens = s % 2 == 1
        row = {
            "step": s,
            "phase": "tokens" if tokens else "schedule",
            "reward": 0.5 + s / 160,
            "spread": 0.25 - s / 800,
        }
        row |= {"loss": -0.125 if tokens else 0.5, "lr": 1e-3 if tokens else 0.01}
        rows.append(row | {"grad_norm": (1 if tokens else 8) + math.sin(s) / 4, "clip_high": 0.01 * tokens + s / 1000})
    rows[40] |= {f"eval/{k}": v for k, v in after.items() if k[:5] != "steps"}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"family": "masked", "recipe": "co-grpo", "seed": seed, "steps": 40, "seconds": 9.5}
    levels = {"chance": {"judge": 0.125}, "before": before, "after": after}
    (run / "summary.json").write_text(json.dumps(told | levels | summary))
    (run / "config.yaml").write_text(CONFIG.format(seed=seed))
    for at, step in enumerate(STEPS):
        lines = [_line(run, seed if at else 0, number, step) for number in range(len(PROMPTS))]
        (run / "samples" / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        named = schedule(moved=at / 2, spread=spread * (at > 0))
        (run / "samples" / f"profiles-step-{step:06d}.json").write_text(json.dumps(named))
    return run


def schedule(*, moved: float, spread: float = 0.0) -> dict[str, dict[str, list[float]]]:
    """Four variables over T steps; `moved`: away from the hand-made one, by that much at all steps but the last."""
    x = [(t + 1) / T for t in range(T)]
    base = {
        "ratio": [math.cos(math.pi / 2 * v) for v in x[:-1]] + [0.0],
        "remask": [2 * (1 - v) for v in x],
        "sample": [1.0] * T,
        "guidance": [3.0] * T,
    }
    far = {"ratio": -0.125, "remask": 0.5, "sample": -0.25, "guidance": 1.5}
    out = {}
    for name, values in base.items():
        mean = [v + moved * far[name] * (t < T - 1) for t, v in enumerate(values)]
        out[name] = {"x": x, "mean": mean, "spread": [spread * (t < T - 1) for t in range(T)], "base": values}
    return out


def _line(run: Path, seed: int, number: int, step: int) -> dict[str, Any]:
    digits = load_digits("train")
    own = digits.images[digits.labels == DIGITS[number]]
    images, strips = [], []
    for i in range(4):
        grey = torch.as_tensor(own[i + step // 20 + seed].astype("float32")) / 16
        picture = (1 - grey).expand(3, 8, 8)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(i)) * T // 64
        images.append(f"images/{number}-{i}-{step}.png")
        strips.append(f"images/{number}-{i}-{step}-filling.png")
        Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(run / "samples" / images[-1])
        filling(picture, order, grid=(8, 8), n_steps=T).save(run / "samples" / strips[-1])
    total = 0.25 + step / 80
    line = {"id": f"p{number}", "task": "image", "prompt": PROMPTS[number], "output": "", "drawn": True}
    line |= {"image": images[0], "images": images, "totals": [total] * 4, "filling": strips}
    return line | {"reward": {"digit": total}, "total": total}
