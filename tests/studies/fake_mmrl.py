"""Stands in for `mmrl train CONFIG key=value ... out=RUN [--resume]`: a step takes no time worth mentioning.

A file RUN/../NAME.wait makes the run wait until it is gone; NAME.fail makes it fail.
"""

import json
import signal
import sys
import time
from pathlib import Path

stopped = False


def stop(signum, frame):
    global stopped
    stopped = True


signal.signal(signal.SIGTERM, stop)
pairs = dict(a.split("=", 1) for a in sys.argv[3:] if "=" in a)
run = Path(pairs["out"])
run.mkdir(exist_ok=True)
assert ("--resume" in sys.argv) == (run / "config.yaml").exists(), "resume exactly what was started"
(run / "config.yaml").write_text("")
with open(run / "sessions", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\n")
while run.with_name(f"{run.name}.wait").exists():
    if stopped:
        sys.exit(143)
    time.sleep(0.01)
if run.with_name(f"{run.name}.fail").exists():
    print("error: data.train: no such file; mend it", file=sys.stderr)
    sys.exit(2)
seed, by_reward = int(pairs["seed"]), run.name == "reward"
gain = 0.125 + seed / 16 if by_reward else -0.0625
seconds = float(pairs.get("train.max_seconds", 40 + seed))
rows = [
    {"step": 0, "eval/score": 0.5, "eval/reward": 1.0},
    {"step": 1, "seconds/step": seconds / 4, "loss": 0.0},
    {"step": 2, "seconds/step": seconds * 3 / 4, "eval/score": 0.5 + gain, "eval/reward": 1.0 + gain},
]
(run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
summary = {
    "before": {"score": 0.5, "reward": 1.0},
    "after": {"score": 0.5 + gain, "reward": 1.0 + gain},
    "chance": {"score": 0.25},
    "steps": 2,
    "seconds": seconds,
    "seconds_cpu": seconds * (1.0 if by_reward else 0.8),
}
(run / "summary.json").write_text(json.dumps(summary))
