"""Keys and values kept between the forwards of a decoder. Axes: n rows, h heads, k columns, e size of a head.

No gradient flows into or out of a cache: keys that need one are refused. The tensors that `update` returns are views
of the cache's memory, valid until its next update of that layer.
"""

from __future__ import annotations

from torch import Tensor


class _Columns:
    """Memory [n, h, capacity, e] of one layer; the first `length` columns are kept."""

    def __init__(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        n, heads, _, size = keys.shape
        self.keys = keys.new_empty(n, heads, capacity, size)
        self.values = values.new_empty(n, heads, capacity, size)  # under autocast their dtypes can differ
        self.length = 0

    def write(self, start: int, keys: Tensor, values: Tensor) -> int:
        """Returns the column after the last one written. Memory is doubled when it is full."""
        stop = start + keys.shape[2]
        if stop > self.keys.shape[2]:
            grown = _Columns(self.keys, self.values, max(stop, 2 * self.keys.shape[2]))
            grown.keys[:, :, :start] = self.keys[:, :, :start]
            grown.values[:, :, :start] = self.values[:, :, :start]
            self.keys, self.values = grown.keys, grown.values
        self.keys[:, :, start:stop] = keys
        self.values[:, :, start:stop] = values
        return stop

    def read(self, stop: int) -> tuple[Tensor, Tensor]:
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def select(self, rows: Tensor) -> None:
        rows = rows.to(self.keys.device)
        self.keys, self.values = self.keys[rows], self.values[rows]


class _Kept:
    def __init__(self) -> None:
        self._layers: dict[int, _Columns] = {}

    @property
    def columns(self) -> int:
        """Columns that are kept; 0 before the first forward."""
        return self._layers[0].length if self._layers else 0

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values that are kept, views [n, h, columns, e]. KeyError before the first forward."""
        return self._layers[layer].read(self._layers[layer].length)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only: indices int64 or a bool mask [n], in the order given."""
        for columns in self._layers.values():
            columns.select(rows)

    @staticmethod
    def _check(keys: Tensor) -> None:
        if keys.requires_grad:
            raise ValueError("a cache holds no gradients: run the forward under torch.no_grad()")


class AppendCache(_Kept):
    """Finished columns, followed in each forward by the new ones.

    store  whether the columns of the next forwards stay (a prefill, a finished block); else they are seen by that
           forward only (a step of a block that is still being decoded). Set it before each forward.
    room   columns to set memory aside for at the first forward.
    """

    def __init__(self, *, store: bool = False, room: int = 0) -> None:
        super().__init__()
        self.store, self.room = store, room

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._check(keys)
        columns = self._layers.get(layer)
        if columns is None:
            columns = self._layers[layer] = _Columns(keys, values, max(self.room, keys.shape[2]))
        stop = columns.write(columns.length, keys, values)
        if self.store:
            columns.length = stop
        return columns.read(stop)


class ReplaceCache(_Kept):
    """All columns of a canvas: the first forward fills them, later ones overwrite those from `start` on.

    start  the column of the canvas that the first column of the next forward stands for. Set it before each forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.start = 0

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Raises ValueError when the columns reach beyond those of the first forward."""
        self._check(keys)
        columns = self._layers.get(layer)
        if columns is None:
            columns = self._layers[layer] = _Columns(keys, values, keys.shape[2])
            columns.length = keys.shape[2]
        if self.start + keys.shape[2] > columns.length:
            raise ValueError(f"columns {self.start}..{self.start + keys.shape[2]} of a canvas of {columns.length}")
        columns.write(self.start, keys, values)
        return columns.read(columns.length)
