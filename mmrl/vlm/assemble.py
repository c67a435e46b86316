"""Sampled rows become `Rollouts`. Axes: N rollouts, T decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmrl.data.records import Record
from mmrl.training.rollouts import Request, Rollouts, row_keys
from mmrl.vlm.config import Sampling
from mmrl.vlm.sampler import Sampled


def assemble(
    requests: Sequence[Request],
    found: Sequence[Sampled],
    *,
    texts: Sequence[str],
    stats: dict[str, float],
    sampling: Sampling,
) -> Rollouts:
    """Tables, keys and info of the rows of `requests`, request after request.

    `sampling.truncated` decides about rows that ran into the token limit: `mask` gives them a mask of False (no loss,
    though they are rewarded), `penalise` writes `penalty` into the info of every row, `keep` does nothing.
    """
    lengths = torch.tensor([len(s.row) for s in found])
    width = int(lengths.max())
    mask = torch.arange(width) < lengths[:, None]
    logp = torch.zeros(len(found), width, dtype=found[0].logp.dtype)
    for i, sampled in enumerate(found):
        logp[i, : len(sampled.row)] = sampled.logp
    if sampling.truncated == "mask":
        mask &= torch.tensor([s.finished for s in found])[:, None]
    info: list[dict[str, Any]] = []
    records: list[Record] = []
    for request in requests:
        for j in range(request.n):
            sampled = found[len(records)]
            records.append(request.record)
            limit = request.sampling.get("max_new_tokens", sampling.max_new_tokens)
            info.append(_info(sampled, request.first_sample + j) | {"limit": int(limit)})
    if sampling.truncated == "penalise":
        for row in info:  # a reward component of its own, on every row so that the column is complete
            row["penalty"] = 0.0 if row["finished"] else sampling.truncation_penalty
    return Rollouts(
        rows=[s.row for s in found],
        records=records,
        outputs=list(texts),
        info=info,
        keys=row_keys(requests),
        tables={"tokens": {"mask_nt": mask, "sampler_logp_nt": logp}},
        segments={"tokens": {}},
        stats=stats,
    )


def _info(sampled: Sampled, sample: int) -> dict[str, Any]:
    """`original_size` and `model_size` are [width, height] of the first picture, for boxes in pixel frames."""
    info: dict[str, Any] = {"length": len(sampled.row), "finished": sampled.finished, "sample": sample}
    if sampled.row.prompt.sizes:
        original, model = sampled.row.prompt.sizes[0]
        info |= {"original_size": list(original), "model_size": list(model)}
    return info
