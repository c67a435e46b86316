"""Detection rewards of Visual-RFT (arXiv 2503.01785): overlap and confidence. Loads no torch.

Prediction and answer are compared in the record's own coordinate frame (IoU does not change under a scaling per axis).
Tasks: detection. Checked with: formula only (the worked example of the method and its invariants).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from mmrl.data.answers import box_answers
from mmrl.data.boxtext import BoxList, Detection
from mmrl.data.records import Record
from mmrl.rewards.boxes import iou
from mmrl.rewards.parse import Parser, boxes
from mmrl.rewards.registry import reward

Divisor = Literal["max", "predictions"]
Threshold = Annotated[float, Field(ge=0, lt=1)]
Confidence = Annotated[float, Field(ge=0, le=1)]


def with_confidence(found: BoxList, default: float | None = None) -> list[Detection]:
    """Predictions in matching order: identical positions once (the first stays), by falling confidence, stable.

    A record without confidence takes `default`, or is dropped when that is None.
    """
    first: dict[tuple[float, ...], Detection] = {}
    for d in found.boxes:
        confidence = default if d.confidence is None else d.confidence
        if confidence is not None:
            first.setdefault(d.box, Detection(d.box, confidence, d.label))
    return sorted(first.values(), key=lambda d: -(d.confidence or 0.0))


def match(predictions: Sequence[Detection], truth: Sequence[Detection], *, tau: float = 0.5) -> list[float]:
    """IoU of each prediction with the answer box it takes, 0 where it takes none.

    Greedy, one to one, in the order given: the free answer box of largest IoU (first on a tie), taken if IoU > tau.
    """
    free = list(range(len(truth)))
    scores = []
    for p in predictions:
        best, at = 0.0, -1
        for j in free:
            overlap = iou(p.box, truth[j].box)
            if overlap > best:
                best, at = overlap, j
        if at >= 0 and best > tau:
            free.remove(at)
            scores.append(best)
        else:
            scores.append(0.0)
    return scores


def iou_score(scores: Sequence[float], n_truth: int, *, divisor: Divisor = "max") -> float:
    """Sum of matched IoUs over max(m, n) (today's release) or over n (paper and first release), in [0, 1]."""
    if not scores:
        return 0.0
    n = max(n_truth, len(scores)) if divisor == "max" else len(scores)
    return min(1.0, sum(scores) / n)


def confidence_score(scores: Sequence[float], confidences: Sequence[float]) -> float:
    """Mean of c where the box matched and of 1 - c where it did not, clipped to [0, 1] after the mean."""
    if not scores:
        return 0.0
    terms = [c if s > 0 else 1.0 - c for s, c in zip(scores, confidences, strict=True)]
    return max(0.0, min(1.0, sum(terms) / len(terms)))


def _read(
    output: str, record: Record, parser: Parser, default: float | None
) -> tuple[list[Detection], tuple[Detection, ...], bool]:
    """Predictions in matching order, answer boxes, and whether "nothing is there" was said, rightly."""
    found = boxes(output, parser=parser)
    truth = box_answers(record.answer, f"record {record.id!r}")
    return with_confidence(found, default), truth, found.empty and not truth


@reward("iou", tasks=("detection",))
def iou_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    tau: Threshold = 0.5,
    divisor: Divisor = "max",
    parser: Parser = "robust",
    default_confidence: Confidence | None = None,
) -> list[float]:
    """R_iou, in [0, 1]. 1 for an explicit "No Objects" (or []) when nothing is there; 0 without any box otherwise."""
    values = []
    for output, record in zip(outputs, records, strict=True):
        predictions, truth, rightly_empty = _read(output, record, parser, default_confidence)
        scores = match(predictions, truth, tau=tau)
        values.append(1.0 if rightly_empty else iou_score(scores, len(truth), divisor=divisor))
    return values


@reward("confidence", tasks=("detection",))
def confidence_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    tau: Threshold = 0.5,
    parser: Parser = "robust",
    default_confidence: Confidence | None = None,
    need_match: bool = False,
) -> list[float]:
    """R_conf, in [0, 1]; "No Objects" as in R_iou.

    As published it can be gamed: wrong boxes of confidence 0 earn 1. `need_match` gives 0 unless some box matched.
    """
    values = []
    for output, record in zip(outputs, records, strict=True):
        predictions, truth, rightly_empty = _read(output, record, parser, default_confidence)
        scores = match(predictions, truth, tau=tau)
        value = confidence_score(scores, [d.confidence or 0.0 for d in predictions])
        if need_match and not any(scores):
            value = 0.0
        values.append(1.0 if rightly_empty else value)
    return values
