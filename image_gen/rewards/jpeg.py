"""JPEG size rewards. Loads no torch.

Source: DDPO, arXiv 2305.13301. Sizes depend on the Pillow and libjpeg builds: compare within one machine only.
Checked with: formula only (no model).
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Annotated, Any

from pydantic import Field

from image_gen.rewards.pictures import to_image
from mmrl.data.records import Record
from mmrl.rewards.registry import reward

Quality = Annotated[int, Field(ge=1, le=100)]


def kilobytes(output: Any, *, quality: int = 95) -> float:
    """Bytes / 1000 of the JPEG: default subsampling, no optimised tables."""
    stream = BytesIO()
    to_image(output).save(stream, format="JPEG", quality=quality)
    return stream.tell() / 1000


def incompressibility(kilo: float) -> float:
    """+s: 40,000 bytes give 40."""
    return kilo


def compressibility(kilo: float) -> float:
    """-s / 500: 40,000 bytes give -0.08."""
    return -kilo / 500


@reward("jpeg_compressibility")
def jpeg_compressibility(
    outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]], *, quality: Quality = 95
) -> list[float]:
    """-(bytes / 1000) / 500: smooth pictures score highest (about -0.5 to -0.02 at 512 pixels)."""
    return [compressibility(kilobytes(output, quality=quality)) for output in outputs]


@reward("jpeg_incompressibility")
def jpeg_incompressibility(
    outputs: Sequence[Any], records: Sequence[Record], info: Sequence[dict[str, Any]], *, quality: Quality = 95
) -> list[float]:
    """bytes / 1000: noisy and detailed pictures score highest."""
    return [incompressibility(kilobytes(output, quality=quality)) for output in outputs]
