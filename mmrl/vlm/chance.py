"""Chance levels: what the best constant answer would score, per metric of `mmrl.vlm.evaluate`.

Each metric gets its own best constant, chosen with the answers in hand, so these levels are generous to chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from mmrl.config import Config
from mmrl.core.groups import total_reward
from mmrl.data.answers import box_answer, box_answers, count_answer, label_answers
from mmrl.data.records import Record
from mmrl.rewards.score import Scorer
from mmrl.vlm.evaluate import mean, one_box

#: Candidate boxes take each side from this many quantiles of that side among the answers.
QUANTILES = 9
_KNOWN = ("detection", "classification", "counting", "grounding")

Array = npt.NDArray[np.float64]


def levels_of(records: Sequence[Record], config: Config) -> dict[str, float]:
    """Metric -> level of the best constant answer. `reward` is left out when a record has a task of the user's own:
    what a constant answer to it looks like is not known."""
    levels: dict[str, float] = {}
    single = np.array([box_answers(r.answer, _name(r))[0].box for r in records if one_box(r)], dtype=np.float64)
    if len(single):
        overlap_cn = _overlaps(_candidates(single), single)
        levels["mean_iou"] = float(overlap_cn.mean(1).max())
        levels["acc_50"] = float((overlap_cn > 0.5).mean(1).max())
    labels = [label_answers(r.answer, _name(r)) for r in records if r.task == "classification"]
    if labels:
        known = {label for accepted in labels for label in accepted}
        levels["classification"] = max(mean([float(k in accepted) for accepted in labels]) for k in known)
    counts = [count_answer(r.answer, _name(r)) for r in records if r.task == "counting"]
    if counts:
        levels["counting"] = Counter(counts).most_common(1)[0][1] / len(counts)
    ground = np.array([box_answer(r.answer, _name(r)) for r in records if r.task == "grounding"], dtype=np.float64)
    if len(ground):
        levels["grounding"] = float(_overlaps(_candidates(ground), ground).mean(1).max())
    empty = [not box_answers(r.answer, _name(r)) for r in records if r.task == "detection"]
    if any(empty) and not all(empty):
        levels["no_objects"] = 0.5
    if all(r.task in _KNOWN for r in records):
        levels["reward"] = _reward(records, config)
    return levels


def _candidates(box_n4: Array) -> Array:
    """[C, 4]: all combinations of quantiles of the sides that have an area."""
    grid = np.quantile(box_n4, np.linspace(0, 1, QUANTILES), axis=0)
    box_c4 = np.array(list(product(*grid.T)))
    kept: Array = box_c4[(box_c4[:, 2] > box_c4[:, 0]) & (box_c4[:, 3] > box_c4[:, 1])]
    return kept


def _overlaps(box_c4: Array, box_n4: Array) -> Array:
    """IoU of every candidate with every answer: [C, N]."""
    low = np.maximum(box_c4[:, None, :2], box_n4[None, :, :2])
    high = np.minimum(box_c4[:, None, 2:], box_n4[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(-1)
    area_c, area_n = (np.clip(b[:, 2:] - b[:, :2], 0, None).prod(1) for b in (box_c4, box_n4))
    union = area_c[:, None] + area_n[None] - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def _best_box(box_n4: Array) -> list[int]:
    box_c4 = _candidates(box_n4)
    return [round(float(v)) for v in box_c4[_overlaps(box_c4, box_n4).mean(1).argmax()]]


def _constants(task: str, records: Sequence[Record]) -> list[str]:
    """Well-formed answers that do not look at the picture."""
    if task == "classification":
        return sorted({label for r in records for label in label_answers(r.answer, _name(r))})
    if task == "counting":
        return sorted({str(count_answer(r.answer, _name(r))) for r in records})
    if task == "grounding":
        x1, y1, x2, y2 = _best_box(np.array([box_answer(r.answer, _name(r)) for r in records], dtype=np.float64))
        return [f"({x1},{y1}),({x2},{y2})"]
    said = ["No Objects"]
    boxes = [d.box for r in records for d in box_answers(r.answer, _name(r))]
    if boxes:
        box = _best_box(np.array(boxes, dtype=np.float64))
        said += [f"[{{'Position': {box}, 'Confidence': {c}}}]" for c in ("0.00", "1.00")]
    return said


def _reward(records: Sequence[Record], config: Config) -> float:
    """Mean reward when every task gets its best constant answer."""
    with Scorer(config.rewards) as scorer:
        total = 0.0
        for task in sorted({r.task for r in records}):
            rows = [r for r in records if r.task == task]
            total += len(rows) * max(mean_reward(scorer, text, rows) for text in _constants(task, rows))
    return total / len(records)


def mean_reward(scorer: Scorer, text: str, records: Sequence[Record]) -> float:
    """What the answer `text`, in well-formed tags, is worth to every record."""
    info: list[dict[str, Any]] = [{"length": 0, "finished": True, "sample": 0} for _ in records]
    outputs = [f"<think></think><answer>{text}</answer>"] * len(records)
    scored = scorer.score(outputs, records, info)
    return float(total_reward(reward_nk=scored.reward_nk, weight_k=scored.weight_k).nanmean())


def _name(record: Record) -> str:
    return f"record {record.id!r}"
