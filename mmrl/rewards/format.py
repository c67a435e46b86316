"""Format reward: are the tags there? Loads no torch. Every task. Checked with: formula only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmrl.data.records import Record
from mmrl.rewards.parse import answer_only, well_formed
from mmrl.rewards.registry import reward


@reward("format")
def format_reward(
    outputs: Sequence[str],
    records: Sequence[Record],
    info: Sequence[dict[str, Any]],
    *,
    template: Literal["think-answer", "answer"] = "think-answer",
) -> list[float]:
    """1 when the whole completion is <think>...</think>, optional blanks, <answer>...</answer>, else 0.

    It looks at the tags only, not at what they hold (Visual-RFT, arXiv 2503.01785). `template="answer"`: one pair of
    answer tags and nothing else, for models that do not think aloud.
    """
    check = well_formed if template == "think-answer" else answer_only
    return [float(check(output)) for output in outputs]
