"""Which columns may see which: bool masks [n, q, k] for `MaskedLM.hidden`. Axes: n rows, q queries, k keys, l columns.

A column that is not valid sees only itself, so that no softmax is empty; nobody else sees it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sees(segment_nl: Tensor, positions_nl: Tensor, noisy_nl: Tensor | None, block: int | None) -> Tensor:
    """The whole rule. segment_nl: int64, which text a column belongs to (several may share a row), -1 = not valid.

    block None: full attention inside a segment. Otherwise by block = position // block: clean -> clean: blocks not
    after its own; noisy -> clean: blocks before its own; noisy -> noisy: its own block; clean -> noisy: never.
    noisy_nl: bool, columns of the noisy copy; None = there is none.
    """
    allowed = (segment_nl[:, :, None] == segment_nl[:, None, :]) & (segment_nl >= 0)[:, None, :]
    if block is not None:
        index = positions_nl // block
        q, k = index[:, :, None], index[:, None, :]
        if noisy_nl is None:
            allowed = allowed & (k <= q)
        else:
            from_noisy, to_noisy = noisy_nl[:, :, None], noisy_nl[:, None, :]
            allowed = allowed & torch.where(from_noisy, torch.where(to_noisy, q == k, k < q), ~to_noisy & (k <= q))
    return allowed | torch.eye(segment_nl.shape[1], dtype=torch.bool, device=segment_nl.device)


def full(valid_nl: Tensor) -> Tensor | None:
    """Every valid column sees every valid column. None when nothing is padded: no mask is needed."""
    return None if bool(valid_nl.all()) else sees(_one(valid_nl), valid_nl, None, None)


def block_causal(positions_nl: Tensor, valid_nl: Tensor, block: int) -> Tensor:
    """Column q sees k when k's block (position // block) is not after q's."""
    return sees(_one(valid_nl), positions_nl, None, block)


def _one(valid_nl: Tensor) -> Tensor:
    """One text a row."""
    return valid_nl.long() - 1
