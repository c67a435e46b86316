"""Reading text in a video: one minus the word error rate. Loads no torch.

Tasks: ocr (problem type `OCR` of Video-R1, arXiv 2503.21776). Checked with: formula only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.data.records import Record
from mmrl.rewards.parse import answer_text
from mmrl.rewards.registry import reward
from video.rewards.texts import Unit, edit_distance, right_texts, words_as_written


def error_rate(said: Sequence[str], right: Sequence[str]) -> float:
    """(substitutions + insertions + deletions) / number of right words. From twice as many words on, which is an
    error rate of at least 1 whatever they are, only the insertions are counted. `right` must not be empty."""
    if len(said) >= 2 * len(right):
        return (len(said) - len(right)) / len(right)
    return edit_distance(right, said) / len(right)


@reward("ocr_words", tasks=("ocr",), check=right_texts)
def ocr_words_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    unit: Unit = "word",
    fold_case: bool = False,
) -> list[float]:
    """max(0, 1 - WER), in [0, 1]: WER = edits / right words, words split at blanks and compared as written.

    unit        character: character error rate, blanks left out; for scripts without blanks.
    fold_case   upper and lower case are the same.
    Several accepted texts: the best one counts.
    """
    values = []
    for output, record in zip(outputs, records, strict=True):
        said = _words(answer_text(output), unit, fold_case)
        rates = [error_rate(said, _words(text, unit, fold_case)) for text in right_texts(record)]
        values.append(max(0.0, 1.0 - min(rates)))
    return values


def _words(text: str, unit: Unit, fold_case: bool) -> list[str]:
    return words_as_written(text.casefold() if fold_case else text, unit)
