"""Samples kept for people: samples/step-XXXXXX.jsonl and pictures beside it, greedy, on the same records each time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
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
from mmrl.training.token_weights import Weighing, groups_of, token_weights

LARGE = 200  # pixels of the longer side, above which a drawn picture is stored with losses
ROW = 160  # pixels of height, at most, of each of several pictures that are kept as one sheet
Describe = Callable[[Rollouts, Sequence[int]], list[dict[str, Any]]]


def write_samples(
    run: Path,
    step: int,
    policy: Policy,
    scorer: Scorer,
    records: Sequence[Record],
    *,
    seed: int,
    weighing: Weighing | None = None,
) -> None:
    """`policy.gallery_rows` greedy outputs per record: texts with their pictures, boxes and reward components, or
    pictures that the model drew. The same noise at every step: what changes is the model. Beside them
    samples/profiles-step-XXXXXX.json, where the policy has something to draw of itself (`Policy.profiles`).
    weighing: how the recipe weighs tokens; texts then hold their tokens with a weight each, within a group of the
    greedy answer and sampled ones."""
    if not records:
        return
    requests = [Request(record=r, n=policy.gallery_rows) for r in records]
    rollouts = policy.rollout(requests, Streams(seed, 0, "gallery"), greedy=True)
    scored = scorer.score(rollouts.outputs, rollouts.records, rollouts.info)
    folder = run / "samples"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    shown = policy.describe(rollouts, range(len(rollouts)))
    if weighing is not None and policy.gallery_rows == 1:
        others = groups_of(policy, records, weighing, seed=seed)
        for i, weights in enumerate(token_weights(policy, rollouts, others, weighing)):
            shown[i] |= _weighed(policy.token_texts(rollouts, i), weights)
    rows: dict[int, list[int]] = {}
    for i, prompt in enumerate(rollouts.keys["prompt"].tolist()):
        rows.setdefault(prompt, []).append(i)
    lines = [json.dumps(_line(rollouts, scored, own, [shown[i] for i in own], folder)) for own in rows.values()]
    (folder / f"step-{step:06d}.jsonl").write_text("\n".join(lines) + "\n")
    if drawn := policy.profiles(rollouts):
        (folder / f"profiles-step-{step:06d}.json").write_text(json.dumps(drawn, allow_nan=False) + "\n")


def _weighed(texts: Sequence[str], weights: Sequence[float]) -> dict[str, Any]:
    """{"tokens": [{"text", "weight"}, ...]}; nothing where there are no weights, or no texts to stand under."""
    if not weights or not texts:
        return {}
    return {"tokens": [{"text": t, "weight": round(w, 4)} for t, w in zip(texts, weights, strict=True)]}


def _line(
    rollouts: Rollouts, scored: Any, rows: Sequence[int], shown: Sequence[dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """One record, its outputs at `rows`: means of their rewards, and pictures that the model drew with a total each."""
    record, first = rollouts.records[rows[0]], {k: v for k, v in shown[0].items() if k not in ("images", "filling")}
    line = {"id": record.id, "task": record.task, **first}
    totals = [float(scored.reward_n[i]) for i in rows]
    line["reward"] = _means([_components(scored, i) for i in rows])
    line["total"] = _means([{"total": t} for t in totals if math.isfinite(t)]).get("total")
    pictures = [one["images"][0].convert("RGB") for one in shown if one.get("images")]
    if drawn := bool(pictures) and not isinstance(rollouts.outputs[rows[0]], str):
        line["drawn"] = True
        line["images"] = [_keep(picture, record.id, folder, drawn=True) for picture in pictures]
        line["totals"] = [t if math.isfinite(t) else None for t in totals]
        if all(one.get("filling") for one in shown):
            line["filling"] = [_keep(one["filling"].convert("RGB"), record.id, folder, drawn=True) for one in shown]
    if pictures:
        own = shown[0]["images"]
        seen = pictures[0] if drawn or "boxes" in line or len(own) == 1 else _sheet(own)  # boxes are of the first one
        line["image"] = line["images"][0] if drawn else _keep(seen, record.id, folder)
    return line


def _sheet(images: Sequence[Image.Image]) -> Image.Image:
    """One below the other on white, each at most ROW pixels high: the clips and pictures of one prompt."""
    rows = [image.convert("RGB") for image in images]
    for row in rows:
        row.thumbnail((row.width, ROW))
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height + 4 for r in rows) - 4), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + 4
    return sheet


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """By name, over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: statistics.fmean(row[name] for row in rows if name in row) for name in names}


def _keep(image: Image.Image, record_id: str, folder: Path, *, drawn: bool = False) -> str:
    """Save the picture under `folder` unless it is there; returns images/NAME.png. Large pictures that a model drew are
    JPEG: there are new ones at every step.

    The name is a hash of the record's id and of the pixels: one picture serves all steps, and a run that goes on with
    other records (or other pictures under the same ids) never shows its boxes on old ones.
    """
    key = hashlib.blake2b(f"{record_id}\n{image.size}\n".encode(), digest_size=8)
    key.update(image.tobytes())
    kind = "JPEG" if drawn and max(image.size) > LARGE else "PNG"
    name = f"images/{key.hexdigest()}.{'jpg' if kind == 'JPEG' else 'png'}"
    if not (folder / name).exists():
        image.save(folder / f"{name}.tmp", format=kind, quality=92)
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
