"""Question-answer inversion of TW-GRPO (arXiv 2505.24718): a question with one right option becomes its negation, which
all options but the old right one answer. Pure functions; loads no torch.

The released code inverts the answer even where no rule can negate the question, which gives a wrong label. Here such a
question stays as it is. Rules fire on whole words only: released, "wash ..." would become "wasn'th ...".
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from mmrl.errors import UserError

Rules = Literal["nextgqa", "star"]

#: The second word of a question -> its contraction.
NEXTGQA = {
    "did": "didn't",
    "does": "doesn't",
    "do": "don't",
    "is": "isn't",
    "are": "aren't",
    "was": "wasn't",
    "were": "weren't",
}
#: How a question starts -> how its negation does, looked for in this order.
STAR_START = {
    "did": "didn't",
    "was": "wasn't",
    "able": "unable",
    "would": "wouldn't",
    "what will": "what won't",
    "what happened": "what didn't happen",
}
#: Where none of these fires: the second word.
STAR_SECOND = {word: STAR_START[word] for word in ("did", "was", "able", "would")}


@dataclass(frozen=True)
class Negated:
    """`rule` says which one fired: "second word: did", "start: what will"."""

    question: str
    rule: str


@dataclass(frozen=True)
class Inverted:
    """The new item. `right`: indices of all options but the old right one, rising."""

    question: str
    options: tuple[str, ...]
    right: tuple[int, ...]
    rule: str

    @property
    def letters(self) -> str:
        return ",".join(ascii_uppercase[i] for i in self.right)


def negate(question: str, rules: Rules) -> Negated | None:
    """The negation, in lower case with single blanks; None when no rule fires."""
    words = question.lower().split()
    if rules == "nextgqa":
        return _second_word(words, NEXTGQA)
    if rules != "star":
        raise UserError(f"rules: unknown rules {rules!r}; valid: nextgqa, star")
    text = " ".join(words)
    for start, negation in STAR_START.items():
        if re.match(rf"{start}(?![\w'\u2019])", text):
            return Negated(negation + text[len(start) :], f"start: {start}")
    return _second_word(words, STAR_SECOND)


def _second_word(words: Sequence[str], table: dict[str, str]) -> Negated | None:
    if len(words) < 2 or words[1] not in table:
        return None
    return Negated(" ".join([words[0], table[words[1]], *words[2:]]), f"second word: {words[1]}")


def item_stream(seed: int, name: str) -> random.Random:
    """The random numbers of one item: they depend on (seed, record id) only, on no other item."""
    return random.Random(f"question-answer inversion\x1f{seed}\x1f{name}")


def invert(
    question: str, options: Sequence[str], right: int, *, rules: Rules, stream: random.Random
) -> Inverted | None:
    """Negate the question; keep k of the wrong options, k uniform in 1..len(options) - 1, beside the old right one;
    shuffle. None when no rule fires. k is random so that no number of letters is right more often than by chance.

    options   texts without letters, at least 2, all different from the right one.
    """
    if len(options) < 2 or not 0 <= right < len(options):
        raise ValueError(f"invert needs at least 2 options and one of them right, got {len(options)} and {right}")
    negated = negate(question, rules)
    if negated is None:
        return None
    wrong = [i for i in range(len(options)) if i != right]
    kept = [right, *stream.sample(wrong, stream.randint(1, len(wrong)))]
    stream.shuffle(kept)
    now_right = tuple(place for place, i in enumerate(kept) if i != right)
    return Inverted(negated.question, tuple(options[i] for i in kept), now_right, negated.rule)
