"""Tokens of an answer with a weight each, as a sample file holds them. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl.report.frontier import is_finite


def weighed(tokens: Any, file: Path, problems: list[str]) -> list[tuple[str, float]]:
    """(text, weight) of each; nothing where there is something else, told once a file."""
    if tokens is None:
        return []
    if isinstance(tokens, list) and all(_is_token(token) for token in tokens):
        return [(token["text"], round(float(token["weight"]), 4)) for token in tokens]
    problem = f"{file.name}: tokens are no list of a text and a weight of 0 or more each; shown without weights"
    if problem not in problems:
        problems.append(problem)
    return []


def _is_token(token: Any) -> bool:
    if not isinstance(token, dict) or not isinstance(token.get("text"), str):
        return False
    return is_finite(token.get("weight")) and token["weight"] >= 0
