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

#: Letters of options that are English words as well: alone they tell nothing.
_WORDS = ("A", "I")


def answer_in_words(record: Record) -> str | None:
    """The record's answer in words; None where it is no text or number."""
    answer = record.answer
    if isinstance(answer, (list, tuple)) and answer and all(isinstance(part, str) for part in answer):
        answer = ",".join(answer)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return None
    text = re.sub(r"</?answer>", "", str(answer), flags=re.IGNORECASE).strip()
    return text or None


def ask(record: Record) -> str | None:
    """What is added to the prompt to be shown how its answer is found; None without an answer in words."""
    answer = answer_in_words(record)
    return None if answer is None else ASK.format(answer=answer)


def reasoning(output: Any, record: Record) -> str:
    """The thoughts of an output without its answer: what stands in <think>, else all text; without <answer> and
    without sentences that speak of an answer or hold the record's: its comma-separated parts as whole words, or, where
    these are letters of options (meta `options`), the text behind them."""
    text = str(output)
    found = _THOUGHT.search(text)
    text = _ANSWER.sub("", found.group(1) if found else text)
    said = answer_in_words(record)
    parts = [] if said is None else [part.strip() for part in said.split(",") if part.strip()]
    gold = [pattern for part in parts for pattern in _tells(part, record)]
    kept = [
        sentence.strip()
        for sentence in _SENTENCE.split(text)
        if "answer" not in sentence.lower() and not any(pattern.search(sentence) for pattern in gold)
    ]
    return " ".join(sentence for sentence in kept if sentence)


def _tells(part: str, record: Record) -> list[re.Pattern[str]]:
    """What gives away one part of an answer: the part as a whole word, and the option that a letter stands for."""
    word = rf"(?<!\w){re.escape(part)}(?!\w)"
    if part in _WORDS:
        word = _letter(part)
    found = [re.compile(word, 0 if len(part) < 3 else re.IGNORECASE)]
    options = record.meta.get("options")
    place = ord(part) - ord("A") if re.fullmatch("[A-Z]", part) else -1
    if isinstance(options, (list, tuple)) and 0 <= place < len(options):
        text = re.sub(r"^\(?[A-Z][).:]?\s+", "", str(options[place])).strip()
        if text:
            found.append(re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE))
    return found


def _letter(part: str) -> str:
    """Where a letter that is a word as well names an option. An article is not capital inside a sentence; neither it
    nor the pronoun stands before a mark, an end or one of these verbs."""
    found = [
        rf"(?i:\b(?:option|choice|letter|is|be|choose|pick|select|take)s?)\s+{part}\b",
        rf"(?<!\w){part}(?=\s*(?:[:,;.=)\]\"*`/&]|'(?!\w)|$)|\s*(?:and|or)\s*[A-Z]\b)",
        rf"(?<!\w){part}(?=\s+(?:is|fits|matches|seems|looks|holds|works|applies)\b)",
        rf"[A-Z],\s?{part}\b",
    ]
    return "|".join([*found, rf"\w\W*?\s{part}(?![\w'])"] if part == "A" else found)


def hint(trace: str, share: float) -> str | None:
    """The first share of the words of a trace, as an addition to the prompt; None where nothing is left to say."""
    words = trace.split()
    taken = words[: math.ceil(share * len(words) - 1e-9)]
    return HINT.format(part=" ".join(taken)) if taken else None
