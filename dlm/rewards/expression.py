"""The value of an arithmetic expression, exactly, without evaluating any code. Loads no torch.

Whole numbers, + - * /, brackets, signs in front. Never raises on any string.
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 400  # characters
_TOKEN = re.compile(r"\s*+(?:(\d{1,9}+)(?![\d.])|([-+*/()]))", re.ASCII)
_BINDS = {"+": 1, "-": 1, "*": 2, "/": 2, "sign": 3}


def value(text: str) -> Fraction | None:
    """None when the text is no such expression, is too long, or divides by zero."""
    tokens = _tokens(text)
    return None if tokens is None else _compute(tokens)


def numbers_in(text: str) -> list[int] | None:
    """Every run of digits in a text, from the left; None when one is longer than any number of a task."""
    found = re.findall(r"[0-9]+", text)
    return [int(run) for run in found] if all(len(run) < 10 for run in found) else None


def _tokens(text: str) -> list[str] | None:
    text = text.strip()
    tokens: list[str] = []
    at = 0
    if len(text) > LONGEST:
        return None
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        tokens.append(match[1] or match[2])
        at = match.end()
    return tokens


def _compute(tokens: list[str]) -> Fraction | None:
    """Two stacks (numbers, and signs that wait for their right side); no recursion, so nesting is harmless."""
    numbers: list[Fraction] = []
    waiting: list[str] = []
    operand = True  # what may come next: a number, a bracket or a sign in front; else an operator
    for token in tokens:
        if operand:
            if token.isdigit():
                numbers.append(Fraction(int(token)))
                operand = False
            elif token in "(-+":
                waiting.append("(" if token == "(" else f"sign{token}")
            else:
                return None
        elif token == ")":
            while waiting and waiting[-1] != "(":
                if not _apply(numbers, waiting.pop()):
                    return None
            if not waiting:
                return None
            waiting.pop()
        elif token in _BINDS:
            while waiting and waiting[-1] != "(" and _BINDS[waiting[-1].rstrip("+-") or waiting[-1]] >= _BINDS[token]:
                if not _apply(numbers, waiting.pop()):
                    return None
            waiting.append(token)
            operand = True
        else:
            return None
    while waiting:
        if waiting[-1] == "(" or operand or not _apply(numbers, waiting.pop()):
            return None
    return numbers[0] if len(numbers) == 1 and not operand else None


def _apply(numbers: list[Fraction], sign: str) -> bool:
    """Put the result in the place of its operands; False when dividing by zero."""
    right = numbers.pop()
    if sign.startswith("sign"):
        numbers.append(-right if sign == "sign-" else right)
        return True
    left = numbers.pop()
    if sign == "/":
        if right == 0:
            return False
        numbers.append(left / right)
    else:
        numbers.append({"+": left + right, "-": left - right, "*": left * right}[sign])
    return True
