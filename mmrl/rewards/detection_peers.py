"""Detection rewards of VLM-R1 (om-ai-lab/VLM-R1, arXiv 2504.07615): weighted sum, AP, and AP against over-prediction.

Loads no torch. Tasks: detection. Records may be written {"bbox_2d": [...], "label": "..."}; a label in the answer is
compared with the predicted one, an answer without labels compares boxes only. Departure from the peer: an output earns
the value of "rightly nothing" only by saying so ("None", "No Objects", []), not by being unreadable.
Checked with: formula only (AP also against pycocotools).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.data.answers import box_answers
from mmrl.data.boxtext import Detection
from mmrl.data.records import Record
from mmrl.rewards.average_precision import COCO_THRESHOLDS, average_precision
from mmrl.rewards.boxes import iou
from mmrl.rewards.parse import boxes
from mmrl.rewards.registry import reward

MATCH_ABOVE = 0.5
POSITION_WEIGHT, LABEL_WEIGHT, COMPLETENESS_WEIGHT = 0.7, 0.0, 0.3


def _read(output: str, record: Record) -> tuple[list[Detection], list[Detection], bool]:
    """Predictions and answer (labels lower-cased; dropped where the answer has none), and "empty was said"."""
    truth = box_answers(record.answer, f"record {record.id!r}")
    found = boxes(output)
    labelled = any(d.label is not None for d in truth)

    def plain(d: Detection) -> Detection:
        return Detection(d.box, 1.0, (d.label or "").strip().lower() if labelled else None)

    return [plain(d) for d in found.boxes], [plain(d) for d in truth], found.empty


def weighted_sum(predictions: Sequence[Detection], truth: Sequence[Detection]) -> float:
    """0.7 position + 0.3 completeness (labels have weight 0 in the release), in [0, 1].

    The pair of largest IoU is matched again and again, down to 0.5; a pair with different labels stays matched and
    counts IoU 0. position = sum of IoUs / m; completeness = 1 - (free answers / m + free predictions / n) / 2.
    """
    if not truth or not predictions:
        return float(not truth and not predictions)
    pairs = [(iou(p.box, t.box), i, j) for i, p in enumerate(predictions) for j, t in enumerate(truth)]
    taken_i: set[int] = set()
    taken_j: set[int] = set()
    total, same_label = 0.0, 0
    for overlap, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if overlap < MATCH_ABOVE:
            break
        if i in taken_i or j in taken_j:
            continue
        taken_i.add(i)
        taken_j.add(j)
        if predictions[i].label == truth[j].label:
            total += overlap
            same_label += 1
    m, n = len(truth), len(predictions)
    completeness = 1.0 - ((m - len(taken_j)) / m + (n - len(taken_i)) / n) / 2.0
    weights = POSITION_WEIGHT + LABEL_WEIGHT + COMPLETENESS_WEIGHT
    score = POSITION_WEIGHT * total / m + LABEL_WEIGHT * same_label / m + COMPLETENESS_WEIGHT * completeness
    return score / weights


@reward("weighted_sum", tasks=("detection",))
def weighted_sum_reward(
    outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]
) -> list[float]:
    """`weighted_sum` of the completion's boxes."""
    values = []
    for output, record in zip(outputs, records, strict=True):
        predictions, truth, empty = _read(output, record)
        values.append(weighted_sum(predictions, truth) if predictions or truth else float(empty))
    return values


@reward("ap", tasks=("detection",))
def ap_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    thresholds: tuple[float, ...] = COCO_THRESHOLDS,
    punish_extra: bool = False,
) -> list[float]:
    """COCO mAP of the one picture, in [0, 1]; `thresholds: [0.5]` is AP50. `punish_extra`: times min(1, m / n)."""
    values = []
    for output, record in zip(outputs, records, strict=True):
        predictions, truth, empty = _read(output, record)
        if not predictions and not truth:
            values.append(float(empty))
            continue
        value = average_precision(predictions, truth, thresholds=thresholds)
        few = min(1.0, len(truth) / len(predictions)) if punish_extra and predictions else 1.0
        values.append(value * few)
    return values


@reward("od_length", tasks=("detection",))
def od_length_reward(outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """AP * min(1, m / n), in [0, 1]: more boxes than the answer has cost (`odLength` of the peer)."""
    return ap_reward(outputs, records, info, punish_extra=True)
