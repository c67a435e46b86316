"""Decoded rows become `Rollouts`. Axes: N rollouts, T completion positions (the canvas)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dlm.config import Sampling
from dlm.rows import Row
from mmrl.data.records import Record
from mmrl.masked.steps import n_steps
from mmrl.training.rollouts import Request, Rollouts, row_keys

CHANNEL = "tokens"


def region(row: Row, which: Literal["canvas", "to_eos"]) -> Tensor:
    """Positions whose likelihood counts, bool [L]: filled ones, of the whole canvas or up to the first end token."""
    filled = torch.ones(len(row), dtype=torch.bool) if row.demonstration else row.steps >= 0
    return filled if which == "canvas" else filled & (torch.arange(len(row)) < row.length)


def tokens_per_forward(row: Row) -> tuple[int, float]:
    """(denoising forwards, tokens up to and including the end token over them). A forward is a distinct step of the
    decoding; those that only write a cache are not counted. 0 where nothing was decoded."""
    forwards = int(n_steps(row.steps[None]))
    return forwards, row.length / forwards if forwards else 0.0


def assemble(
    requests: Sequence[Request],
    rows: Sequence[Row],
    *,
    texts: Sequence[str],
    finished: Sequence[bool],
    logps: Sequence[Tensor] | None,
    stats: dict[str, float],
    sampling: Sampling,
) -> Rollouts:
    """Tables, keys and info of the rows of `requests`, request after request.

    logps: the sampler's log-probabilities [L] a row, for likelihoods that can be compared with them; None otherwise.
    `sampling.truncated` decides about rows without an end token: `mask` takes them out of the loss (they are rewarded
    still), `penalise` writes `penalty` into the info of every row, `keep` does nothing.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([region(row, sampling.likelihood.region) for row in rows], batch_first=True)
    if sampling.truncated == "mask":
        mask &= torch.tensor(list(finished))[:, None]
    tables = {"mask_nt": mask}
    if logps is not None:
        tables["sampler_logp_nt"] = pad(list(logps), batch_first=True)
    records: list[Record] = []
    info: list[dict[str, Any]] = []
    for request in requests:
        for j in range(request.n):
            i = len(records)
            forwards, tpf = tokens_per_forward(rows[i])
            records.append(request.record)
            info.append(
                {
                    "length": rows[i].length,
                    "finished": bool(finished[i]),
                    "sample": request.first_sample + j,
                    "limit": int(request.sampling.get("max_new_tokens", sampling.max_new_tokens)),
                    "forwards": forwards,
                    "tpf": tpf,
                }
            )
            if sampling.truncated == "penalise":
                info[i]["penalty"] = 0.0 if finished[i] else sampling.truncation_penalty
    return Rollouts(
        rows=list(rows),
        records=records,
        outputs=list(texts),
        info=info,
        keys=row_keys(requests),
        tables={CHANNEL: tables},
        segments={CHANNEL: {}},
        stats=stats,
    )
