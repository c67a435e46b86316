"""Samples kept for people: samples/step-XXXXXX.jsonl and pictures beside it, greedy, on the same records each time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.rewards.score import Scorer
from mmrl.training.batch import Scored
from mmrl.training.policy import Policy
from mmrl.training.rollouts import Request, Rollouts

Describe = Callable[[Rollouts, Sequence[int]], list[dict[str, Any]]]


def write_samples(
    run: Path, step: int, policy: Policy, scorer: Scorer, records: Sequence[Record], *, seed: int
) -> None:
    """One greedy output per record, its pictures, boxes and reward components."""
    if not records:
        return
    requests = [Request(record=r, n=1) for r in records]
    rollouts = policy.rollout(requests, Streams(seed, step, "gallery"), greedy=True)
    scored = scorer.score(rollouts.outputs, rollouts.records, rollouts.info)
    folder = run / "samples"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for i, shown in enumerate(policy.describe(rollouts, range(len(rollouts)))):
        images = shown.pop("images", [])
        line = {"id": rollouts.records[i].id, **shown, "reward": _components(scored, i)}
        if images:
            name = f"images/{i:03d}.png"  # the same records every time, so one picture serves all steps
            if not (folder / name).exists():
                images[0].convert("RGB").save(folder / name)
            line["image"] = name
        lines.append(json.dumps(line))
    (folder / f"step-{step:06d}.jsonl").write_text("\n".join(lines) + "\n")


def write_rollouts(run: Path, step: int, scored: Scored, count: int) -> None:
    """samples/rollouts-step-XXXXXX.jsonl: the first `count` rows of a training batch with all reward components."""
    rollouts = scored.rollouts
    lines = [
        json.dumps(
            {
                "id": rollouts.records[i].id,
                "sample": rollouts.info[i]["sample"],
                "output": str(rollouts.outputs[i]),
                "finished": bool(rollouts.info[i]["finished"]),
                "reward": _components(scored, i),
            }
        )
        for i in range(min(count, len(rollouts)))
    ]
    (run / "samples").mkdir(exist_ok=True)
    (run / "samples" / f"rollouts-step-{step:06d}.jsonl").write_text("".join(line + "\n" for line in lines))


def _components(scored: Any, i: int) -> dict[str, float]:
    values = scored.reward_nk[i].tolist()
    return {name: v for name, v in zip(scored.names, values, strict=True) if v == v}
