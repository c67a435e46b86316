"""Pairs [clean | noisy] of block attention in which every clean copy is computed once, however many noisy ones it has.

Clean columns never see noisy ones, so a row under several views needs its clean keys and values once. Prompt 24,
completion 24, 5 views: 168 columns instead of 360. Gradients flow through the clean copy too, so the result is that of
the pairs. Axes: m pairs, n different rows, l clean columns, r noisy columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlm import attention
from dlm.columns import Columns
from dlm.models.base import MaskedLM


class _Recorded:
    """Keys and values of every layer as they pass by, with their gradients."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.layers.append((keys, values))
        return keys, values


class _Behind:
    """The recorded columns of row `row_m`, and the new ones behind them."""

    def __init__(self, recorded: _Recorded, row_m: Tensor) -> None:
        self.layers, self.row_m = recorded.layers, row_m

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        clean_keys, clean_values = (x[self.row_m] for x in self.layers[layer])
        return torch.cat([clean_keys, keys], 2), torch.cat([clean_values, values], 2)


def shared_hidden(model: MaskedLM, clean: Columns, noisy: Columns, row_m: Tensor, block: int) -> Tensor:
    """Hidden states [m, r, d] of the noisy copies. clean: n rows; noisy: m of them; row_m: int64, the row of each."""
    device = model.head.weight.device
    ids, valid, positions, _ = (x.to(device) for x in vars(clean).values())
    recorded = _Recorded()
    model.hidden(
        ids, positions_nl=positions, attend_nqk=attention.block_causal(positions, valid, block), cache=recorded
    )
    row_m, both = row_m.to(device), (clean.of(row_m.cpu()).beside(noisy))
    _, valid, positions, is_noisy = (x.to(device) for x in vars(both).values())
    width = ids.shape[1]
    attend = attention.sees(valid.long() - 1, positions, is_noisy, block)[:, width:]
    return model.hidden(
        noisy.ids_nl.to(device),
        positions_nl=positions[:, width:],
        attend_nqk=attend,
        cache=_Behind(recorded, row_m),
    )
