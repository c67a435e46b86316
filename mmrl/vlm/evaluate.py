"""Greedy metrics of held-out records, by task, and the mean reward.

mean_iou    detection records with exactly one box: IoU of the answer's box (the most confident, the first among
            equals); 0 when there is none.
acc_50      the same records: share with IoU > 0.5.
reward      all records: mean of the weighted total reward (a penalty on truncated samples is not part of it).
classification, counting    share of right answers.
grounding   mean IoU of the answer's box; 0 when there is none.
no_objects  detection records: how well "there is nothing" is told, the mean of two shares: records without objects that
            are answered so, and records with objects that are not.

A metric whose records are missing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mmrl.config import Config
from mmrl.core.groups import total_reward
from mmrl.core.streams import Streams
from mmrl.data.answers import box_answer, box_answers
from mmrl.data.boxtext import Box, parse_corners, parse_four
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.boxes import iou
from mmrl.rewards.classification import label_reward
from mmrl.rewards.counting import count_reward
from mmrl.rewards.detection import with_confidence
from mmrl.rewards.parse import answer_text, boxes
from mmrl.rewards.score import Scorer
from mmrl.training.policy import Policy
from mmrl.training.rollouts import Request, Rollouts
from mmrl.vlm.frame_look import frame_advice

#: What a detection without a confidence counts as when boxes of one answer are ordered.
NO_CONFIDENCE = 0.0


def evaluate(policy: Policy, records: Sequence[Record], config: Config) -> dict[str, float]:
    """The metrics above, from one greedy answer per record. Raises UserError without records."""
    return first_look(policy, records, config)[0]


def first_look(policy: Policy, records: Sequence[Record], config: Config) -> tuple[dict[str, float], list[str]]:
    """(the same metrics, a line for each thing that looks wrong with the answers before any training)."""
    if not records:
        raise UserError("data.eval: no records to evaluate; add some")
    rollouts = greedy(policy, records, rows=config.sampling.batch_rows, seed=config.seed)
    outputs = [str(o) for o in rollouts.outputs]
    metrics = {**task_metrics(outputs, records), "reward": rewarded(rollouts, records, config)}
    return metrics, frame_advice(outputs, records, rollouts.info)


def rewarded(rollouts: Rollouts, records: Sequence[Record], config: Config) -> float:
    """Mean of the weighted total reward over the answers that have one."""
    with Scorer(config.rewards) as scorer:
        scored = scorer.score([str(o) for o in rollouts.outputs], records, rollouts.info)
    reward_n = total_reward(reward_nk=scored.reward_nk, weight_k=scored.weight_k)
    return mean([r for r in reward_n.tolist() if math.isfinite(r)])


def chance(records: Sequence[Record], config: Config) -> dict[str, float]:
    """The level of each metric that the best constant answer reaches."""
    from mmrl.vlm.chance import levels_of

    return levels_of(records, config)


def greedy(policy: Policy, records: Sequence[Record], *, rows: int, seed: int) -> Rollouts:
    """One greedy rollout per record, in the order of the records, `rows` of them at a time."""
    parts = []
    for start in range(0, len(records), rows):
        requests = [Request(record=r, n=1) for r in records[start : start + rows]]
        parts.append(policy.rollout(requests, Streams(seed, 0, "eval"), greedy=True))
    return Rollouts.concat(parts)


def task_metrics(outputs: Sequence[str], records: Sequence[Record]) -> dict[str, float]:
    """All metrics but the reward, from the answers as text."""
    found: dict[str, float] = {}
    one = [(o, r) for o, r in zip(outputs, records, strict=True) if one_box(r)]
    if one:
        ious = [detection_iou(o, r) for o, r in one]
        found["mean_iou"] = mean(ious)
        found["acc_50"] = mean([float(v > 0.5) for v in ious])
    for task, score in _SCORES.items():
        rows = [(o, r) for o, r in zip(outputs, records, strict=True) if r.task == task]
        if rows:
            found[task] = mean(score([o for o, _ in rows], [r for _, r in rows]))
    told = _told_apart(outputs, records)
    return found if told is None else {**found, "no_objects": told}


def one_box(record: Record) -> bool:
    """A detection record with exactly one box to find."""
    return record.task == "detection" and len(box_answers(record.answer, f"record {record.id!r}")) == 1


def detection_iou(output: str, record: Record) -> float:
    """IoU of the most confident box of the answer with the record's only box."""
    predictions = with_confidence(boxes(output), NO_CONFIDENCE)
    truth = box_answers(record.answer, f"record {record.id!r}")[0].box
    return iou(predictions[0].box, truth) if predictions else 0.0


def _grounding_iou(outputs: Sequence[str], records: Sequence[Record]) -> list[float]:
    values = []
    for output, record in zip(outputs, records, strict=True):
        said = answer_text(output)
        box: Box | None = parse_corners(said) or parse_four(said)
        values.append(iou(box, box_answer(record.answer, f"record {record.id!r}")) if box else 0.0)
    return values


def _labels(outputs: Sequence[str], records: Sequence[Record]) -> list[float]:
    return label_reward(outputs, records, _no_info(records))


def _counts(outputs: Sequence[str], records: Sequence[Record]) -> list[float]:
    return count_reward(outputs, records, _no_info(records))


_SCORES: dict[str, Callable[[Sequence[str], Sequence[Record]], list[float]]] = {
    "classification": _labels,
    "counting": _counts,
    "grounding": _grounding_iou,
}


def _told_apart(outputs: Sequence[str], records: Sequence[Record]) -> float | None:
    """Balanced accuracy of "No Objects" among detection records; None unless both kinds are there."""
    right: dict[bool, list[float]] = {True: [], False: []}
    for output, record in zip(outputs, records, strict=True):
        if record.task == "detection":
            nothing = not box_answers(record.answer, f"record {record.id!r}")
            right[nothing].append(float(boxes(output).empty == nothing))
    return (mean(right[True]) + mean(right[False])) / 2 if right[True] and right[False] else None


def _no_info(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [{} for _ in records]


def mean(values: Sequence[float]) -> float:
    """nan for no values: a reward that applied nowhere is not 0."""
    return sum(values) / len(values) if values else float("nan")
