"""What a selector asks for. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmrl.data.records import Record


@dataclass(frozen=True)
class Request:
    """`n` samples wanted for one record. `first_sample` numbers them (refills and ranks continue the count)."""

    record: Record
    n: int
    keys: dict[str, int] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)  # overrides of the sampling section, e.g. temperature
    prompt_edit: str | None = None  # text added to the prompt (hints, drafts); None leaves it alone
    first_sample: int = 0
