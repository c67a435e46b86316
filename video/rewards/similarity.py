"""Open-ended answers by likeness to a right text: ROUGE (Lin 2004). Loads no torch.

Tasks: open-ended (problem type `free-form` of Video-R1, arXiv 2503.21776, and of MMVU). Checked with: formula only.
A likeness of words, not of meaning: "it is not red" is close to "it is red".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.parse import answer_text
from mmrl.rewards.registry import reward
from video.rewards.texts import Unit, common_length, right_texts, words_folded

Kind = Literal["l", "1", "2", "mean"]


def f1(common: int, n_said: int, n_right: int) -> float:
    """2PR / (P + R) with P = common / n_said, R = common / n_right; 0 when nothing is common. In [0, 1]."""
    return 2 * common / (n_said + n_right) if common else 0.0


def rouge_l(said: Sequence[str], right: Sequence[str]) -> float:
    """F of the longest common subsequence of the whole texts, precision and recall weighing the same (beta = 1)."""
    return f1(common_length(said, right), len(said), len(right))


def rouge_n(said: Sequence[str], right: Sequence[str], n: int) -> float:
    """F of the runs of n words that both have, each counted as often as the rarer side has it."""
    a, b = (Counter(tuple(x[i : i + n]) for i in range(len(x) - n + 1)) for x in (said, right))
    return f1((a & b).total(), a.total(), b.total())


def likeness(said: Sequence[str], right: Sequence[str], kind: Kind) -> float:
    if kind == "mean":
        return (rouge_n(said, right, 1) + rouge_n(said, right, 2) + rouge_l(said, right)) / 3
    return rouge_l(said, right) if kind == "l" else rouge_n(said, right, int(kind))


def right_words(record: Record, unit: Unit = "word") -> list[list[str]]:
    """The words of each accepted text. Raises UserError for one without any."""
    right = [words_folded(text, unit) for text in right_texts(record)]
    if not all(right):
        raise UserError(f"record {record.id!r}: answer {record.answer!r:.60} has no letter or digit to compare")
    return right


@reward("rouge", tasks=("open-ended",), check=right_words)
def rouge_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    kind: Kind = "l",
    unit: Unit = "word",
) -> list[float]:
    """F of ROUGE, in [0, 1]. Words are lower-case runs of letters and digits, without stemming.

    kind   l: longest common subsequence, F = 2 LCS / (words said + words right); 1, 2: common words, common pairs;
           mean: the mean of the three (Video-R1, which stems as well).
    unit   character: for scripts without blanks.
    Several accepted texts: the best one counts.
    """
    values = []
    for output, record in zip(outputs, records, strict=True):
        said = words_folded(answer_text(output), unit)
        values.append(max(likeness(said, right, kind) for right in right_words(record, unit)))
    return values
