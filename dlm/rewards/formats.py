"""Format rewards of d1 (arXiv 2504.12216), after the GRPO demonstration of Will Brown. Loads no torch.

They look at tags only, in linear time where the released regular expressions rescan. The first release of d1 let no
format span lines, so that `strict_format` was out of reach; the later one, followed here, does. Any task.

Checked with: formula only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dlm.rewards.reading import final_answer
from mmrl.data.records import Record
from mmrl.rewards.registry import reward

_BETWEEN = re.compile(r"</reasoning>\s*+<answer>")
_START, _MIDDLE, _END = "<reasoning>\n", "\n</reasoning>\n<answer>\n", "\n</answer>\n"


@reward("xml_count")
def xml_count_reward(outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """0.125 for each of the four tags that stands on its own line exactly once, less 0.001 for every character behind
    the last line: at most 0.5, below 0 for long tails."""
    return [_xml_count(output) for output in outputs]


def _xml_count(text: str) -> float:
    count = 0.125 * (text.count("<reasoning>\n") == 1) + 0.125 * (text.count("\n</reasoning>\n") == 1)
    if text.count("\n<answer>\n") == 1:  # without a closing line the whole text counts as a tail
        count += 0.125 - 0.001 * len(text.split("\n</answer>\n")[-1])
    if text.count("\n</answer>") == 1:
        count += 0.125 - 0.001 * (len(text.split("\n</answer>")[-1]) - 1)
    return count


@reward("soft_format")
def soft_format_reward(
    outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]
) -> list[float]:
    """0.5 when the text starts with <reasoning>...</reasoning>, blanks, <answer>...</answer>; what follows is free."""
    return [0.5 * _soft(output) for output in outputs]


def _soft(text: str) -> bool:
    """If nothing closes behind the first `</reasoning> <answer>`, nothing does behind a later one."""
    middle = _BETWEEN.search(text, len("<reasoning>")) if text.startswith("<reasoning>") else None
    return middle is not None and text.find("</answer>", middle.end()) >= 0


@reward("strict_format")
def strict_format_reward(
    outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]
) -> list[float]:
    """0.5 when the whole text is the layout with every tag on a line of its own, the last line ended."""
    return [0.5 * _strict(output) for output in outputs]


def _strict(text: str) -> bool:
    """One further newline at the end is let through, as the `$` of the released expression does."""
    middle = text.find(_MIDDLE, len(_START)) if text.startswith(_START) else -1
    first = middle + len(_MIDDLE)
    return middle >= 0 and any(body.endswith(_END, first) for body in (text, text.removesuffix("\n")))


@reward("int")
def int_reward(outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]]) -> list[float]:
    """0.5 when the final answer consists of digits alone: no sign, no point, no comma, and not empty."""
    return [0.5 * final_answer(output).isdigit() for output in outputs]


@reward("boxed")
def boxed_reward(
    outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]], *, released: bool = False
) -> list[float]:
    """Half of: 1 for an opened answer tag, and 1 for \\boxed in the answer (without a tag: anywhere), else 0.5.
    So 1.0 tag and box, 0.75 tag alone, 0.5 box alone, 0.25 neither.

    released: the released code looks for a backspace and "oxed" (a lost backslash) and so never finds a box: 0.75 with
    a tag, 0.25 without.
    """
    return [_boxed(output, "\boxed" if released else "\\boxed") for output in outputs]


def _boxed(text: str, box: str) -> float:
    _, tag, rest = text.partition("<answer>")
    inner = rest.partition("<answer>")[0].partition("</answer>")[0] if tag else text
    return 0.5 * (bool(tag) + (1.0 if box in inner else 0.5))
