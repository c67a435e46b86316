"""Tokens per forward, the speed reward of LightningRL (arXiv 2603.13319). Loads no torch.

Checked with: formula only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.registry import reward


@reward("tpf", cacheable=False)
def tpf_reward(
    outputs: Sequence[str], records: Sequence[Record], info: Sequence[dict[str, Any]], *, scale: float = 1.0
) -> list[float]:
    """`scale` times `info["tpf"]`: tokens up to and including the end token per denoising forward (the forward that
    only fills the cache of a finished block is not counted); 0 for an empty completion. Any task.

    Raises UserError where the sampler reports none.
    """
    values = []
    for row, record in zip(info, records, strict=True):
        if not isinstance(row.get("tpf"), (int, float)):
            raise UserError(
                f"record {record.id!r}: reward tpf needs a sampler that reports tokens per forward (family dlm); "
                "take tpf out of rewards.components"
            )
        values.append(scale * row["tpf"])
    return values
