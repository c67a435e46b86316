"""Samples kept for people: samples/step-XXXXXX.jsonl and pictures beside it, greedy, on the same records each time."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

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
        record, total = rollouts.records[i], float(scored.reward_n[i])
        line = {"id": record.id, "task": record.task, **shown, "reward": _components(scored, i)}
        line["total"] = total if math.isfinite(total) else None
        if images:
            line["image"] = _keep(images[0].convert("RGB"), rollouts.records[i].id, folder)
        lines.append(json.dumps(line))
    (folder / f"step-{step:06d}.jsonl").write_text("\n".join(lines) + "\n")


def _keep(image: Image.Image, record_id: str, folder: Path) -> str:
    """Save the picture under `folder` unless it is there; returns images/NAME.png.

    The name is a hash of the record's id and of the pixels: one picture serves all steps, and a run that goes on with
    other records (or other pictures under the same ids) never shows its boxes on old ones.
    """
    key = hashlib.blake2b(f"{record_id}\n{image.size}\n".encode(), digest_size=8)
    key.update(image.tobytes())
    name = f"images/{key.hexdigest()}.png"
    if not (folder / name).exists():
        image.save(folder / f"{name}.tmp", format="PNG")
        os.replace(folder / f"{name}.tmp", folder / name)  # half a picture would be taken for the whole one later
    return name


def write_rollouts(run: Path, step: int, scored: Scored, count: int) -> None:
    """samples/rollouts-step-XXXXXX.jsonl: the first `count` rows of a training batch with all reward components."""
    rollouts = scored.rollouts
    lines = [
        json.dumps(
            {
                "id": rollouts.records[i].id,
                "sample": rollouts.info[i]["sample"],
                "output": output if isinstance(output := rollouts.outputs[i], str) else "",
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
