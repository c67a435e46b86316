"""Questions about clips of moving digits, with lettered options; one or more of them are right. Loads no torch.

Each of the seven kinds asks about a set of digits that is known by construction. Options are digits: some of that set,
the others first from what else is in the clip, then from what is not. Four or five options and at least two wrong ones:
a letter said blindly is worth 1/4 or 1/5 on average, however many are right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from video.embedded.clips import FATES, PAIRS, Story

LETTERS = "ABCDE"
OPTIONS = (4, 5)
MOST_RIGHT = 3
#: The sentence of the official training prompts (arXiv 2505.24718).
FORMAT = (
    "Output the thinking process in <think> </think> and final answer (letters separated by , if multiple) in "
    "<answer> </answer> tags."
)
WORDS = {
    "seen": "Which digits are in the clip?",
    "never": "Which digits are never in the clip?",
    "come": "Which digits come in?",
    "leave": "Which digits leave?",
    "stay": "Which digits are there all the time?",
    "meet": "Which digits meet another?",
    "pass": "Which digits pass another?",
}
#: What has to happen in some lane, where something has to.
NEEDS: dict[str, tuple[str, ...]] = {
    "come": ("comes",),
    "leave": ("leaves",),
    "stay": ("stays", *PAIRS),
    "meet": ("meets",),
    "pass": ("passes",),
}


@dataclass(frozen=True)
class Question:
    """`options` are digits, A first; `right` their letters in order."""

    text: str
    options: tuple[int, ...]
    right: tuple[str, ...]

    @property
    def problem(self) -> str:
        """The question and one line an option."""
        lines = [f"{letter} {digit}" for letter, digit in zip(LETTERS, self.options, strict=False)]
        return "\n".join([self.text, *lines])


def fates_for(kind: str, lanes: int, rng: np.random.Generator) -> tuple[str, ...]:
    """What happens in each lane: one of them, any, is what the kind needs, the others are so too or free, as often."""
    fates = [str(f) for f in rng.choice(FATES, size=lanes)]
    if kind in NEEDS:
        surely = int(rng.integers(lanes))
        for lane in range(lanes):
            if lane == surely or rng.random() < 0.5:
                fates[lane] = str(rng.choice(NEEDS[kind]))
    return tuple(fates)


def ask(kind: str, story: Story, rng: np.random.Generator) -> Question:
    """A question of one kind about a clip made for it; options and their order are drawn."""
    right = _RIGHT[kind](story)
    wrong = [d for d in range(10) if d not in right]
    many = int(rng.choice(OPTIONS))
    good = int(rng.integers(max(1, many - len(wrong)), min(MOST_RIGHT, len(right), many - 2) + 1))
    chosen = [right[i] for i in rng.permutation(len(right))[:good]]
    order = [wrong[i] for i in rng.permutation(len(wrong))]
    near = sorted(order, key=lambda d: d not in story.does)  # what else is in the clip comes first
    chosen += near[: many - good]
    options = tuple(chosen[i] for i in rng.permutation(many))
    letters = tuple(letter for letter, d in zip(LETTERS, options, strict=False) if d in right)
    return Question(WORDS[kind], options, letters)


def _with_fate(fate: str) -> Callable[[Story], list[int]]:
    return lambda story: [d for lane in story.lanes if lane.fate == fate for d in lane.digits]


_RIGHT: dict[str, Callable[[Story], list[int]]] = {
    "seen": lambda story: list(story.does),
    "never": lambda story: [d for d in range(10) if d not in story.does],
    "come": _with_fate("comes"),
    "leave": _with_fate("leaves"),
    "stay": lambda story: [d for lane in story.lanes for d in lane.throughout()],
    "meet": _with_fate("meets"),
    "pass": _with_fate("passes"),
}
KINDS = tuple(WORDS)
