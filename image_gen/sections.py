"""Sections of a configuration that both families of images have. Loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmrl.config import Section


class Adapter(Section):
    kind: Literal["none", "lora"] = "lora"
    rank: int = Field(32, ge=1, le=65536)
    alpha: float = Field(64, gt=0)
    targets: list[str] | Literal["default"] = Field(
        "default", description="module names, or the layers that the literature adapts for this model"
    )
