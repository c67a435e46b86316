"""Small run folders of a video model whose tokens have weights: embedded clips as strips, answers from literals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stored_runs import EVIL

from video.embedded.records import make_records
from video.show import strip

END = "<|im_end|>"
STEPS = (0, 20, 40)
CONFIG = "family: video\nrecipe: tw-grpo\nseed: {seed}\neval:\n  metric: soft\n"
#: Answer of each record at each of STEPS: tokens with their weights.
SAID: list[list[list[tuple[str, float]]]] = [
    [
        [("<think>", 1.0), ("4", 1.35), (" stays", 1.1), ("</think>", 1.0), ("\n", 1.0), ("A", 1.7), (END, 1.0)],
        [("<think>", 1.0), ("4", 1.7), (" comes", 1.5), ("</think>", 1.0), ("\n", 1.0), ("B", 1.2), (END, 1.0)],
        [("<think>", 1.0), ("4", 1.2), (" comes", 1.7), ("</think>", 1.0), ("\n", 1.0), ("B", 1.35), (END, 1.0)],
    ],
    [[("", 1.0), ("é", 1.7)], [("", 1.0), ("é", 1.7)], [("", 1.0), ("é", 1.7)]],
    [[(EVIL, 1.7), ("A", 1.0)], [(EVIL, 1.7), ("B", 1.0)], [(EVIL, 1.7), ("B" * 300, 1.0)]],
]  # fmt: skip


def write_weighed(run: Path, *, seed: int = 0, weights: bool = True) -> Path:
    (run / "samples" / "images").mkdir(parents=True)
    rows = [{"step": s, "reward": 0.25 + s / 160} for s in range(1, 41)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"family": "video", "recipe": "tw-grpo", "seed": seed, "steps": 40, "seconds": 9.5}
    levels = {"chance": {"soft": 0.25}, "before": {"soft": 0.25, "exact": 0.125}, "after": {"soft": 0.5, "exact": 0.25}}
    (run / "summary.json").write_text(json.dumps(summary | levels))
    (run / "config.yaml").write_text(CONFIG.format(seed=seed))
    records = make_records(part="eval", n=3)
    for number, record in enumerate(records):
        strip(record.videos[0]).save(run / "samples" / "images" / f"{number}.png")
    for at, step in enumerate(STEPS):
        lines: list[dict[str, Any]] = []
        for number, record in enumerate(records):
            tokens = SAID[number][at]
            line = {"id": f"q{number}", "task": "choice", "prompt": record.prompt, "image": f"images/{number}.png"}
            line["answer"] = ("B", 4, EVIL)[number]
            line |= {"output": "".join(text for text, _ in tokens[: len(tokens) - (number == 0)])}
            if weights:
                line["tokens"] = [{"text": text, "weight": weight} for text, weight in tokens]
            lines.append(line | {"reward": {"soft": at / 2}, "total": at / 2})
        (run / "samples" / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run
