"""The policy at step 0: the adapter switched off, or a frozen copy of the trainable weights swapped in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from mmrl.training.sharding import in_shards, put


class Reference:
    """Holds no copy until `keep` is called, and never one for an adapter that started at zero.

    without_adapter   a context in which the adapter is off, for one that started at zero; None otherwise.
    """

    def __init__(
        self, model: torch.nn.Module, *, without_adapter: Callable[[], AbstractContextManager[object]] | None
    ) -> None:
        self.model, self.without_adapter = model, without_adapter
        self._kept: list[tuple[torch.nn.Parameter, torch.Tensor]] = []

    def keep(self) -> None:
        """Copy the trainable weights as they are now: call it before the first update and before a resumed load."""
        if self.without_adapter is None and not self._kept:
            self._kept = [(p, p.detach().clone()) for p in self.model.parameters() if p.requires_grad]

    def _swap(self) -> None:
        for i, (parameter, other) in enumerate(self._kept):
            if in_shards(parameter):  # shards are gathered from where they lie: only their values can change places
                mine = parameter.detach().clone()
                put(parameter, other)
            else:
                mine = parameter.data
                parameter.data = other
            self._kept[i] = (parameter, mine)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the model has the weights of step 0. Not to be entered while gradients are wanted."""
        if self.without_adapter is not None:
            with self.without_adapter():
                yield
            return
        if not self._kept:
            raise RuntimeError("the reference was not kept: call keep_reference before the first update")
        self._swap()
        try:
            yield
        finally:
            self._swap()
