"""How a question is put to the model, and how a row of a published set becomes a record. Loads no torch.

The wording for lettered options is that of TW-GRPO (arXiv 2505.24718): the question, one option a line behind its
letter, and what to answer with. The other wordings are ours, in its manner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from mmrl.data.records import Record
from mmrl.errors import UserError

#: What the prompt asks for: one letter, several, whichever it is, or nothing at all (the bare question).
Ask = Literal["single", "multiple", "mixed", "none"]
ASK = ("single", "multiple", "mixed", "none")

#: Why a question with one right option is left out or kept as it is: two letters would be right.
ALIKE = "an option that reads like the right one"

_SAYS = "Output the thinking process in <think> </think> and final answer ({}) in <answer> </answer> tags."
_CHOICE = {
    "single": "select one letter",
    "multiple": "select letters separated by ,",
    "mixed": "letters separated by , if multiple",
}
_OTHER = {
    "grounding-time": "start and end in seconds, as start - end; further segments separated by ,",
    "ocr": "the text as it is shown",
    "open-ended": "a short text",
    "number": "one number",
    "regression": "one number",
    "classification": "one word or number",
}


def letters(n: int) -> str:
    """The first n of A, B, C, ..."""
    return ascii_uppercase[:n]


def choice_prompt(question: str, options: Sequence[str], ask: Ask) -> str:
    """The question, the options behind their letters, what to answer with."""
    lines = [question, *(f"{letter} {text}" for letter, text in zip(ascii_uppercase, options, strict=False))]
    return "\n".join(lines if ask == "none" else [*lines, _SAYS.format(_CHOICE[ask])])


def choice_record(
    name: str,
    question: str,
    options: Sequence[str],
    right: Sequence[int],
    *,
    ask: Ask,
    videos: tuple[str, ...] = (),
    images: tuple[str, ...] = (),
    response: str | None = None,
    meta: Mapping[str, Any],
    where: str,
) -> Record:
    """A record of task `choice`. `right`: indices of the right options; its letters, in order, are the answer ("A,C").
    meta holds question, options and ask, from which the prompt can be written again.

    Raises UserError that starts with `where`, when there is no right option or the options cannot be lettered.
    """
    if not 1 <= len(options) <= len(ascii_uppercase) or not all(text.strip() for text in options):
        raise UserError(
            f"{where}: between 1 and {len(ascii_uppercase)} options with text are needed, got {options!r:.80}"
        )
    if not right or not all(0 <= i < len(options) for i in right):
        raise UserError(f"{where}: none of the {len(options)} options is marked as right")
    answer = ",".join(ascii_uppercase[i] for i in sorted(set(right)))
    whole = {"question": question, "options": list(options), "ask": ask, **meta}
    return Record(
        name, "choice", choice_prompt(question, options, ask), images, videos, answer, response=response, meta=whole
    )


def open_record(
    name: str,
    task: str,
    question: str,
    answer: Any,
    *,
    ask: Ask,
    videos: tuple[str, ...] = (),
    images: tuple[str, ...] = (),
    response: str | None = None,
    meta: Mapping[str, Any],
) -> Record:
    """A record of a task without options."""
    prompt = question if ask == "none" else f"{question}\n{_SAYS.format(_OTHER[task])}"
    return Record(name, task, prompt, images, videos, answer, response=response, meta={"question": question, **meta})


def without_letters(options: Sequence[str]) -> list[str]:
    """The options without the letters that a file wrote before them: "(A) ", "A. ", "A: " or "A) ". They are taken off
    only when every option has its own, so that a lone "A. Lincoln" stays as it is."""
    texts = [option.strip() for option in options]
    for form in ("({})", "{}.", "{}:", "{})"):
        marks = [form.format(letter) for letter in letters(len(texts))]
        if len(marks) == len(texts) and all(text.startswith(mark) for text, mark in zip(texts, marks, strict=True)):
            return [text[len(mark) :].strip() for text, mark in zip(texts, marks, strict=True)]
    return texts


def indices_of(answer: str, n: int, where: str) -> list[int]:
    """ "B", "B,C", "(B),(C)" -> indices below n. Raises UserError that starts with `where`."""
    found = []
    for item in "".join(answer.split()).replace("(", "").replace(")", "").split(","):
        if len(item) != 1 or item not in letters(n):
            raise UserError(f"{where}: the answer {answer!r:.60} is no letter of the {n} options")
        found.append(ascii_uppercase.index(item))
    return found


def first_existing(paths: Sequence[Path]) -> str:
    """The first of these files that is there, else the first of all."""
    return str(next((path for path in paths if path.is_file()), paths[0]))
