"""A table: the channels of N rollouts, cut along rows and decisions together. Axes by name suffix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from mmrl.core.channels import axes_of

Values = dict[str, Any]  # tensors; clip widths may be plain numbers


def _cut(values: Values, axis: str, index: torch.Tensor) -> Values:
    out: Values = {}
    for name, value in values.items():
        axes = axes_of(name)
        if isinstance(value, torch.Tensor) and axis in axes and value.dim() > axes.index(axis):
            value = value.index_select(axes.index(axis), index.to(value.device))
        out[name] = value
    return out


@dataclass
class Table:
    """channels by name; keys: int64 [N]; segments: int64 [N,T]."""

    channels: Values
    keys: dict[str, torch.Tensor] = field(default_factory=dict)
    segments: dict[str, torch.Tensor] = field(default_factory=dict)

    def rows(self, index: torch.Tensor) -> Table:
        pick = {k: v.index_select(0, index.to(v.device)) for k, v in self.keys.items()}
        seg = {k: v.index_select(0, index.to(v.device)) for k, v in self.segments.items()}
        return Table(_cut(self.channels, "n", index), pick, seg)

    def columns(self, index: torch.Tensor) -> Table:
        seg = {k: v.index_select(1, index.to(v.device)) for k, v in self.segments.items()}
        return Table(_cut(self.channels, "t", index), self.keys, seg)

    def piece(self, rows: torch.Tensor, columns: torch.Tensor | None) -> Table:
        cut = self.rows(rows)
        return cut if columns is None else cut.columns(columns)

    def to(self, device: torch.device) -> Table:
        """Every tensor on a device."""

        def move(values: Values) -> Values:
            return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in values.items()}

        return Table(move(self.channels), move(self.keys), move(self.segments))

    def updated(self, values: Values) -> Table:
        return Table({**self.channels, **values}, self.keys, self.segments)

    def __contains__(self, name: str) -> bool:
        return name in self.channels

    def __getitem__(self, name: str) -> Any:
        return self.channels[name]
