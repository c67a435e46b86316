"""A model in shards over the ranks, by torch's FSDP2. Imported only when a run asks for it.

Every rank keeps a part of each weight, of its gradient and of its optimiser state. A forward with gradient gathers one
unit after the other, so all ranks must make the same calls; forwards without gradient (sampling, old and reference
passes, evaluation, saving) run under `whole`, where every rank holds all weights and talks to nobody: decoding token by
token through gathered layers would send the model over the wire once per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from mmrl.errors import UserError

T = TypeVar("T")


class Shards:
    """`root` and its `units` (its layers), in shards. Parameters outside of units belong to the root's own unit."""

    def __init__(self, root: nn.Module, units: Sequence[nn.Module], *, size: int) -> None:
        """Raises UserError when this torch cannot add gradients of weights that only some ranks used."""
        if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):  # prompts without pictures
            raise UserError(
                f"distributed.mode: fsdp2 needs a newer torch than {torch.__version__}; upgrade, or use ddp"
            )
        root.run_inside = _run_inside  # type: ignore[assignment]
        mesh = init_device_mesh(next(root.parameters()).device.type, (size,))
        for unit in units:
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        fully_shard(root, mesh=mesh, reshard_after_forward=True)
        register_fsdp_forward_method(root, "run_inside")
        self.root: Any = root
        self.modules = [m for m in root.modules() if isinstance(m, FSDPModule)]
        self._depth = 0
        for module in self.modules:
            module.set_gradient_divide_factor(1.0)  # counts are global: gradients add up
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot scale while it adds
            module.set_reduce_scatter_unused_params(True, recurse=False)

    def run(self, work: Callable[[], T]) -> T:
        """`work()` with the root's own parameters gathered; its tensors with gradient must be in what it returns."""
        return self.root.run_inside(work)  # type: ignore[no-any-return]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All weights on every rank. Entered and left by all ranks together; may be nested."""
        self._depth += 1
        if self._depth == 1:
            for module in self.modules:
                module.set_reshard_after_forward(False, recurse=False)
                module.unshard()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                for module in self.modules:
                    module.set_reshard_after_forward(True, recurse=False)
                    module.reshard()


def _run_inside(work: Callable[[], T]) -> T:
    return work()
