"""One spelling for mathematical answers that are written differently, as the MATH benchmark compares them (arXiv
2103.03874). Loads no torch. Never raises on any string.

Purely textual: `\\dfrac12` and `\\frac{1}{2}` meet, 2/4 and 1/2 do not.
"""

from __future__ import annotations

import re

#: In this order: what is replaced, and by what.
_STEPS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\n|\\!", ""),
        (r"\\\\", r"\\"),
        (r"[td]frac", "frac"),
        (r"\\left|\\right", ""),
        (r"\^\\circ|\^\{\\circ\}", ""),
        (r"\\\$", ""),
        (r"\\text\{ .*", ""),  # a unit behind the number
        (r"\\?%", ""),
        (r"(^|[ {])\.", r"\g<1>0."),
        (r"^[^=]{0,2}=([^=]*)$", r"\1"),  # "k = "
        (r"\\sqrt([^{])", r"\\sqrt{\1}"),
        (r" ", ""),
        (r"\\frac([^{])([^{])", r"\\frac{\1}{\2}"),
        (r"\\frac([^{])\{", r"\\frac{\1}{"),
        (r"^0\.5$", r"\\frac{1}{2}"),
        (r"^(-?(?:0|[1-9][0-9]*))/(-?(?:0|[1-9][0-9]*))$", r"\\frac{\1}{\2}"),
    )
)


def normal(text: str) -> str:
    """The answer in one spelling."""
    for pattern, by in _STEPS:
        text = pattern.sub(by, text)
    return text.strip()


def same(a: str, b: str) -> bool:
    """Equal in one spelling, and not empty."""
    first = normal(a)
    return first != "" and first == normal(b)
