"""Small run folders of a model that draws, written from literal numbers and real digits: noise that clears."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mmrl.data.digits import load_digits

STEPS = (0, 20, 40)
EVIL = "</script><img src=x onerror='window.hacked = 3'>"
PROMPTS = ["a seven", "a two", EVIL, "a three", "a nine"]
DIGITS = (7, 2, 0, 3, 9)


def write_drawn(
    run: Path, *, seed: int = 0, start: int = 0, pictures: int = 4, scale: int = 1, gain: float = 0.25
) -> Path:
    """`start`: of the first pictures; runs of one start and seed begin alike. `scale`: of the pictures' sides."""
    (run / "samples" / "images").mkdir(parents=True)
    rows = [{"step": 0, "eval/judge": 0.5, "eval/diversity": 0.25}]
    rows += [{"step": s, "reward": 0.5 + gain * s / 40, "kl": s * 1e-4} for s in range(1, 41)]
    rows[40] |= {"eval/judge": 0.5 + gain, "eval/diversity": 0.2}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"family": "flow", "recipe": "flow-grpo", "seed": seed, "steps": 40, "seconds": 9.5}
    levels = {
        "chance": {"judge": 0.125},
        "before": {"judge": 0.5, "reward": 0.5, "diversity": 0.25},
        "after": {"judge": 0.5 + gain, "reward": 0.75, "diversity": 0.2},
    }
    (run / "summary.json").write_text(json.dumps(summary | levels))
    (run / "config.yaml").write_text(f"family: flow\nrecipe: flow-grpo\nseed: {seed}\neval:\n  metric: judge\n")
    for at, step in enumerate(STEPS):
        lines = [_line(run, seed if at else start, number, step, at, pictures, scale) for number in range(len(PROMPTS))]
        (run / "samples" / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def _line(run: Path, seed: int, number: int, step: int, at: int, pictures: int, scale: int) -> dict[str, object]:
    names = []
    for i in range(pictures):
        names.append(f"images/{number}-{i}-{step}.png")
        _picture(seed, number, i, at, scale).save(run / "samples" / names[-1])
    total = 0.25 + 0.25 * at - 0.5 * (number == 3 and at == 2)  # the three gets worse at the end
    reward = {"digit": total, "ink": 0.5} if number < 4 else {"digit": total}
    line = {"id": f"p{number}", "task": "image", "prompt": PROMPTS[number], "output": "", "drawn": True}
    return line | {"image": names[0], "images": names, "totals": [total] * pictures, "reward": reward, "total": total}


def _picture(seed: int, number: int, i: int, at: int, scale: int) -> Image.Image:
    """A digit below noise that falls from step to step."""
    digits = load_digits("train")
    grey = digits.images[digits.labels == DIGITS[number]][i].astype(float) / 16
    noise = np.random.default_rng([seed, number, i]).random(grey.shape)
    level = (0.8, 0.4, 0.05)[at]
    values = np.uint8(255 * (1 - ((1 - level) * grey + level * noise)))
    return Image.fromarray(values).convert("RGB").resize((8 * scale, 8 * scale), Image.Resampling.BICUBIC)
