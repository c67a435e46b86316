"""Small run folders written from literal numbers: two seeds of one method, and a control with shuffled rewards."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
STEPS = (0, 20, 40)
CONFIG = "family: vlm\nrecipe: grpo\nseed: {seed}\ntrain:\n  control: {control}\neval:\n  metric: mean_iou\n"
#: record -> (task, prompt, true boxes, answer and its boxes at each of STEPS)
RECORDS: dict[str, tuple[str, str, list[list[int]], list[tuple[str, list[list[int]]]]]] = {
    "box": (
        "detection",
        "Where is the seven?",
        [[10, 10, 30, 30]],
        [("nowhere", []), ("there", [[40, 40, 60, 60]]), ("here", [[10, 10, 30, 32]])],
    ),
    "count": ("counting", "How many digits?", [], [("three", []), ("three", []), ("three", [])]),
    "evil": ("counting", EVIL, [], [(EVIL, []), (EVIL, []), (EVIL + "!", [])]),
}


def write_runs(parent: Path) -> list[Path]:
    return [
        write_run(parent / "first", seed=0, gain=0.25),
        write_run(parent / "second", seed=1, gain=0.125),
        write_run(parent / "shuffled", seed=0, gain=0.0, control="shuffled"),
    ]


def write_run(run: Path, *, seed: int, gain: float, control: str = "none") -> Path:
    (run / "samples" / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64), "white").save(run / "samples" / "images" / "box.png")
    rows: list[dict[str, Any]] = [{"step": 0, "eval/mean_iou": 0.25}]
    for step in range(1, 41):
        wave = math.sin(step + seed)
        rows.append(
            {"step": step, "reward": 1 + gain * step / 40 + 0.1 * wave, "kl": 10.0 ** (-5 + step / 10 + wave / 9)}
        )
    rows[40]["eval/mean_iou"] = 0.25 + gain
    if seed == 0:
        rows[30]["signs"] = [
            {
                "step": 30,
                "kind": "kl",
                "metric": "kl",
                "what": "KL is high " + EVIL,
                "advice": "slow down",
                "cleared": False,
            }
        ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"family": "vlm", "recipe": "grpo", "control": control, "seed": seed, "steps": 40, "seconds": 9.5}
    levels = {
        "chance": {"mean_iou": 0.0625, "a_metric_with_a_rather_long_name": 0.5},
        "before": {"mean_iou": 0.25, "a_metric_with_a_rather_long_name": 0.5},
        "after": {"mean_iou": 0.25 + gain, "a_metric_with_a_rather_long_name": 0.75},
    }
    (run / "summary.json").write_text(json.dumps(summary | levels))
    (run / "config.yaml").write_text(CONFIG.format(seed=seed, control=control))
    for at, step in enumerate(STEPS):
        lines = []
        for name, (task, prompt, gold, answers) in RECORDS.items():
            output, boxes = answers[at]
            reward = {"accuracy": float(name == "count"), "format": 1.0}
            line = {"id": name, "task": task, "prompt": prompt, "output": output, "boxes": boxes, "gold": gold}
            lines.append(line | {"reward": reward, "total": sum(reward.values()) + at / 4 * (name == "box")})
            if gold:
                lines[-1]["image"] = "images/box.png"
        (run / "samples" / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run
