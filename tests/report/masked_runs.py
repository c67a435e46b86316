"""Small run folders of a masked diffusion language model, written from literal numbers: accuracy falls with speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EVIL = "</script><img src=x onerror='window.hacked = 4'>"
STEPS = (0, 20, 40)
THRESHOLDS = ("0.5", "0.7", "0.8", "0.9", "0.95")
#: (tokens per forward, accuracy) at each of THRESHOLDS
BEFORE = ((4.0, 0.375), (3.25, 0.5), (2.75, 0.625), (2.0, 0.75), (1.5, 0.78125))
AFTER = ((7.5, 0.625), (6.0, 0.75), (5.0, 0.8125), (3.5, 0.84375), (2.5, 0.875))
CONFIG = """family: dlm
recipe: lightningrl
seed: {seed}
eval:
  metric: accuracy
rewards:
  components:
  - name: exact
    success: 1.0
  - name: tpf
"""
FRAMES = ["0/2  ········", "1/2  1·2··", "2/2  12345"]


def pairs(curve: tuple[tuple[float, float], ...], *, gain: float = 0.0) -> dict[str, float]:
    """`accuracy@X` and `tpf@X` for all X; gain: more tokens per forward."""
    found = {}
    for x, (tpf, accuracy) in zip(THRESHOLDS, curve, strict=True):
        found |= {f"accuracy@{x}": accuracy, f"tpf@{x}": tpf + gain}
    return found


def write_masked(run: Path, *, seed: int = 0, gain: float = 0.0, **summary: Any) -> Path:
    """`gain`: of the tokens per forward after; `summary`: takes the place of what the summary holds by default."""
    (run / "samples").mkdir(parents=True)
    plain = {"accuracy": 0.75, "reward": 0.5, "tpf": 2.0, "finished": 1.0, "aup": 252.5}
    before = plain | pairs(BEFORE)
    after = plain | {"accuracy": 0.84375, "tpf": 3.5 + gain, "aup": 492.375} | pairs(AFTER, gain=gain)
    rows: list[dict[str, Any]] = [{"step": 0} | {f"eval/{k}": v for k, v in before.items()}]
    rows += [
        {"step": s, "reward": s / 40, "kl": s * 1e-4, "entropy": 1 - s / 80, "tpf": 2 + s / 30} for s in range(1, 41)
    ]
    rows[40] |= {f"eval/{k}": v for k, v in after.items()}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"family": "dlm", "recipe": "lightningrl", "seed": seed, "steps": 40, "seconds": 9.5}
    levels = {"chance": {"accuracy": 0.0625}, "before": before, "after": after}
    (run / "summary.json").write_text(json.dumps(told | levels | summary))
    (run / "config.yaml").write_text(CONFIG.format(seed=seed))
    for at, step in enumerate(STEPS):
        lines = [_line("sort", "sort 3 1 2", "1 2 3" if at else "1 3 2", at), _line("evil", EVIL, EVIL, at)]
        (run / "samples" / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def _line(name: str, prompt: str, output: str, at: int) -> dict[str, Any]:
    right = float(name == "sort" and at > 0)
    frames = [EVIL, "1/1  " + EVIL] if name == "evil" else FRAMES[: 2 + (at > 0)]
    line = {"id": name, "task": "sorting", "prompt": prompt, "output": output, "trajectory": frames}
    return line | {"reward": {"exact": right, "tpf": 0.25}, "total": right + 0.25}
