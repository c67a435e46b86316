"""The two ways a task is put into words. Loads no torch.

plain   a short prompt and nothing but the answer behind it, for models of a few characters.
d1      instructions in full sentences; the answer stands in tags, as the rewards of d1 (arXiv 2504.12216) read it:

            <reasoning>
            ...
            </reasoning>
            <answer>
            ...
            </answer>
"""

from __future__ import annotations

STYLES = ("plain", "d1")

_SHAPE = "Answer in exactly this layout:\n<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"


def d1_prompt(question: str, *, reasoning: str = "...", answer: str = "...") -> str:
    """The question behind a description of the layout; `reasoning` and `answer` say what belongs between the tags."""
    return f"{_SHAPE.format(reasoning=reasoning, answer=answer)}\n\n{question}"


def d1_response(reasoning: str, answer: str) -> str:
    """A demonstration that every format reward of d1 gives its full value."""
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>\n"
