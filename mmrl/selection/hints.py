"""Texts that make a hard prompt easier: a request for a reasoning trace, and a part of a trace that leaks no answer."""

from __future__ import annotations

import math
import re
from typing import Any

from mmrl.data.records import Record

ASK = (
    "\nThe correct answer is: {answer}. Explain step by step how to find it, then give it in the form asked for above."
)
HINT = "\nHint, the beginning of a solution: {part}"

_ANSWER = re.compile(r"<answer>.*?(</answer>|$)", re.DOTALL | re.IGNORECASE)
_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL | re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def answer_text(record: Record) -> str | None:
    """The record's answer in words; None where it is no text or number."""
    answer = record.answer
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return None
    text = re.sub(r"</?answer>", "", str(answer), flags=re.IGNORECASE).strip()
    return text or None


def ask(record: Record) -> str | None:
    """What is added to the prompt to be shown how its answer is found; None without an answer in words."""
    answer = answer_text(record)
    return None if answer is None else ASK.format(answer=answer)


def reasoning(output: Any, record: Record) -> str:
    """The thoughts of an output without its answer: what stands in <think>, else all text; without <answer> and
    without sentences that speak of an answer or hold the record's (its comma-separated parts, as whole words)."""
    text = str(output)
    found = _THOUGHT.search(text)
    text = _ANSWER.sub("", found.group(1) if found else text)
    said = answer_text(record)
    parts = [] if said is None else [part.strip() for part in said.split(",") if part.strip()]
    gold = [re.compile(rf"(?<!\w){re.escape(part)}(?!\w)", 0 if len(part) < 3 else re.IGNORECASE) for part in parts]
    kept = [
        sentence.strip()
        for sentence in _SENTENCE.split(text)
        if "answer" not in sentence.lower() and not any(pattern.search(sentence) for pattern in gold)
    ]
    return " ".join(sentence for sentence in kept if sentence)


def hint(trace: str, share: float) -> str | None:
    """The first share of the words of a trace, as an addition to the prompt; None where nothing is left to say."""
    words = trace.split()
    taken = words[: math.ceil(share * len(words) - 1e-9)]
    return HINT.format(part=" ".join(taken)) if taken else None
