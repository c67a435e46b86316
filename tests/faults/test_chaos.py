"""`mmrl train` as a person starts it, killed with SIGKILL at random points and resumed: equal to the uninterrupted run.

Twenty kills; the points are drawn by progress (lines of the log, folders that appear) and not by the clock, so that a
busy machine draws the same kinds of points. `make chaos` prints a line a kill. MMRL_CHAOS_SEED draws other points.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_compare import differences
from PIL import Image

SEED = int(os.environ.get("MMRL_CHAOS_SEED", "0"))
STEPS = 12
REWARD = '''
import random

import numpy as np
import torch

from mmrl.rewards import reward


@reward("noisy")
def noisy(outputs, records, info):
    """Every row another value, from every global generator, so that weights move and resumed states matter."""
    return [len(set(o)) + random.random() + np.random.rand() + float(torch.rand(())) for o in outputs]
'''
CONFIG = f"""
family: vlm
recipe: grpo
device: cpu
threads: 1
plugins: [chaos_reward]
model: {{path: "embedded:vlm", autocast: "off"}}
sampling: {{max_new_tokens: 6}}
data: {{train: train.jsonl, eval: eval.jsonl}}
rewards: {{components: [{{name: noisy}}]}}
train: {{steps: {STEPS}, prompts: 2, group: 4, minibatches: 2}}
optimiser: {{lr: 1.0e-3, warmup: 3, schedule: cosine}}
ema: {{enabled: true, decay: 0.9}}
eval: {{every: 3, samples: 2}}
checkpoint: {{every: 2, keep_last: 2}}
log: {{entropy_every: 2}}
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configuration, reward and the uninterrupted run."""
    root = tmp_path_factory.mktemp("chaos")
    (root / "chaos_reward.py").write_text(REWARD)
    (root / "run.yaml").write_text(CONFIG)
    for name, count in (("train", 9), ("eval", 4)):
        rows = []
        for i in range(count):
            Image.effect_noise((56, 56), 80).convert("RGB").save(root / f"{name}{i}.png")
            rows.append({"id": f"{name}{i}", "prompt": f"Where is {i}?", "images": [f"{name}{i}.png"], "task": "t"})
        lines = [json.dumps({**row, "answer": [[100, 200, 300, 400]]}) + "\n" for row in rows]
        (root / f"{name}.jsonl").write_text("".join(lines))
    process = start(root, "run.yaml", "out=whole")
    assert process.wait() == 0, said(root, "whole")
    return root


def start(root: Path, *arguments: str) -> subprocess.Popen[bytes]:
    code = "from mmrl.cli.main import main; main()"
    out = next((a.removeprefix("out=") for a in arguments if a.startswith("out=")), arguments[0])
    with (root / f"{out}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code, "train", *arguments],
            cwd=root,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def said(root: Path, out: str) -> str:
    return (root / f"{out}.log").read_text()[-3000:]


def lines(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def saving(run: Path) -> str:
    """Name of a folder that is being written; empty when there is none."""
    try:
        return next((n for n in os.listdir(run / "checkpoints") if n.startswith(".writing-step")), "")
    except FileNotFoundError:
        return ""


def until(process: subprocess.Popen[bytes], ready: Callable[[], object]) -> bool:
    """Whether it came to that before the process ended."""
    while process.poll() is None:
        if ready():
            return True
        time.sleep(0.0005)
    return False


def kill(root: Path, out: str, kind: str, draw: random.Random, *, resume: bool) -> str:
    """Start the run (or go on with it), kill it at a point of this kind, and say where it was. Empty: it was too fast
    and ended by itself."""
    run = root / out
    had = lines(run) if resume else 0
    process = start(root, out, "--resume") if resume else start(root, "run.yaml", f"out={out}")
    try:
        if kind == "before the first save":
            ready = until(process, lambda: (run / "config.yaml").exists())
            time.sleep(draw.uniform(0, 0.5))
        elif kind == "in a save":
            number, seen = draw.randint(0, 3), set()

            def counted() -> bool:
                if name := saving(run):
                    seen.add(name)
                return bool(name) and len(seen) > number

            ready = until(process, counted)
            time.sleep(draw.uniform(0, 0.03))
        elif kind == "at the end":
            ready = until(process, lambda: lines(run) == STEPS + 1)
            time.sleep(draw.uniform(0, 0.02))
        else:  # in a step, an evaluation or a save: wherever it is then
            wanted = draw.randint(had + 1, STEPS) if had < STEPS else STEPS
            ready = until(process, lambda: lines(run) >= wanted)
            time.sleep(draw.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        where = f"{lines(run):2d} lines, {saving(run) or 'no save under way'}"
    finally:
        process.kill()
        code = process.wait()
    assert code in (0, -signal.SIGKILL), said(root, out)
    return where if ready and code == -signal.SIGKILL else ""


KINDS = ["anywhere", "in a save", "anywhere", "before the first save", "in a save", "anywhere", "at the end", "twice"]
KILLS = [(number, KINDS[number % len(KINDS)]) for number in range(20)]


@pytest.mark.parametrize(("number", "kind"), KILLS, ids=[f"{n:02d} {kind}" for n, kind in KILLS])
def test_a_kill(number: int, kind: str, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(f"{SEED} {number}")
    told: list[str] = []
    for attempt in range(5):  # a run that ended before the kill came counts as none
        out = f"kill{number:02d}-{attempt}"
        told = [
            kill(world, out, draw.choice(["anywhere", "in a save"]) if kind == "twice" else kind, draw, resume=False)
        ]
        if told[0] and kind == "twice":
            told.append(kill(world, out, "anywhere", draw, resume=True))
        if all(told):
            break
    assert all(told), "the run was never killed in time"
    process = start(world, out, "--resume")
    assert process.wait() == 0, said(world, out)
    text = (world / f"{out}.log").read_text().splitlines()
    went_on = [line for line in text if line.startswith(("resuming from", "no checkpoint yet"))]
    found = differences(world / "whole", world / out)
    with capfd.disabled():
        verdict = "equal" if not found else "DIFFERENT"
        print(f"\nkill {number:02d} {kind:<21} {' | '.join(told)} -> {went_on[-1]:<45} {verdict}", flush=True)
    assert found == []
