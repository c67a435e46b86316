"""Label reward of Visual-RFT (arXiv 2503.01785): is the class right? Loads no torch.

Tasks: classification. Checked with: formula only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmrl.data.answers import label_answers
from mmrl.data.records import Record
from mmrl.rewards.parse import answer_text, official_answer_text
from mmrl.rewards.registry import reward

Match = Literal["exact", "containment"]


def normalise(label: str) -> str:
    """Without blanks and underscores, lower case."""
    return "".join(label.split()).replace("_", "").lower()


def label_score(text: str, label: str, *, match: Match = "exact") -> float:
    """1 or 0. `exact`: equal after normalisation, and not empty. `containment`: either contains the other."""
    said, right = normalise(text), normalise(label)
    if match == "exact":
        return float(said == right and said != "")
    return float(said in right or right in said)


@reward("label", tasks=("classification",))
def label_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    match: Match = "exact",
) -> list[float]:
    """R_acc, 0 or 1. An answer that is a list of labels accepts any of them.

    `match="containment"` is the released rule, for comparisons only: an empty answer wins always, "BMW" wins for every
    BMW, "A or B or C" wins for all three. It also takes the released parser (answer tags on one line).
    """
    extract = answer_text if match == "exact" else official_answer_text
    values = []
    for output, record in zip(outputs, records, strict=True):
        labels = label_answers(record.answer, f"record {record.id!r}")
        said = extract(output)
        values.append(max(label_score(said, label, match=match) for label in labels))
    return values
