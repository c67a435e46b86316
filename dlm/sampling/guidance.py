"""Classifier-free guidance: l = l_u + (s + 1)(l_c - l_u), l_u of the same canvas with the prompt masked.

Source: LLaDA (arXiv 2502.09992). One step costs two forwards.
"""

from __future__ import annotations

from torch import Tensor


def guided(with_prompt_mv: Tensor, without_mv: Tensor, scale: float) -> Tensor:
    """Logits [m, v]; scale 0 gives those of the prompt back."""
    return without_mv + (scale + 1) * (with_prompt_mv - without_mv)
