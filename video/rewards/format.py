"""Format reward of TW-GRPO (arXiv 2505.24718). Loads no torch. Every task. Checked with: formula only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmrl.data.records import Record
from mmrl.rewards.registry import reward

_MIDDLE = re.compile(r"</think>\s*+<answer>")
_CLOSE = "</answer>"


def thinks_then_answers(text: str) -> bool:
    """At most one <think> and one <answer>; <think>...</think>, blanks, <answer>...</answer>, then nothing but blanks
    and exclamation marks. What stands before <think> is free. Linear in the length of the text."""
    if text.count("<think>") != 1 or text.count("<answer>") != 1:
        return False
    body = _without_tail(text)
    middle = _MIDDLE.search(body, body.find("<think>") + len("<think>"))
    return middle is not None and body.endswith(_CLOSE) and len(body) - len(_CLOSE) >= middle.end()


def _without_tail(text: str) -> str:
    end = len(text)
    while end and (text[end - 1] == "!" or text[end - 1].isspace()):
        end -= 1
    return text[:end]


@reward("think_format")
def think_format_reward(
    outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]
) -> list[float]:
    """1 for <think>...</think><answer>...</answer> at the end of the text, each opened once, else 0.

    Laxer than `format`: text before <think>, and blanks or "!" behind the end, are let through.
    """
    return [float(thinks_then_answers(output)) for output in outputs]
