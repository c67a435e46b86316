"""Scores remembered by a hash of what they depend on. Loads no torch."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from typing import Any

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.calling import Row
from mmrl.rewards.plan import Component


class RewardCache:
    """The latest `size` rows of rewards that depend on output and record only."""

    def __init__(self, size: int = 100_000) -> None:
        self.size = size
        self.hits = 0
        self._rows: OrderedDict[bytes, list[float]] = OrderedDict()

    def key(self, component: Component, output: Any, record: Record) -> bytes | None:
        """Hash of reward, options, output and record (id, task, answer, frame, meta); None = not to be cached."""
        if not (component.one.cacheable and component.one.rowwise):
            return None
        what = [component.one.name, component.options, record.id, record.task, record.answer, record.frame, record.meta]
        digest = hashlib.blake2b(json.dumps(what, sort_keys=True, default=repr).encode(), digest_size=16)
        digest.update(_bytes(output))
        return digest.digest()

    def get(self, key: bytes | None) -> list[float] | None:
        if key is None or key not in self._rows:
            return None
        self.hits += 1
        self._rows.move_to_end(key)
        return self._rows[key]

    def put(self, key: bytes | None, row: Row) -> None:
        """Faults are not kept: they may pass."""
        if key is None or not isinstance(row, list):
            return
        self._rows[key] = row
        if len(self._rows) > self.size:
            self._rows.popitem(last=False)


def _bytes(output: Any) -> bytes:
    if isinstance(output, str):
        return b"text" + output.encode("utf-8", "surrogatepass")
    if hasattr(output, "numpy"):  # tensors on the CPU
        output = output.numpy()
    if hasattr(output, "tobytes"):  # pictures and arrays
        about = [str(getattr(output, name, "")) for name in ("mode", "size", "shape", "dtype")]
        return json.dumps(about).encode() + output.tobytes()
    raise UserError(f"rewards.cache: outputs of type {type(output).__name__} cannot be hashed; set cache: false")
