"""Memory of the update: nodes of the quadrature are pieces, so three of them need what one needs."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import torch
from tiny_policy import policy, sampled

from dlm.policy import ElboPolicy
from mmrl import recipes
from mmrl.core import recipe as core_recipe
from mmrl.core.objective import Objective
from mmrl.core.table import Table
from mmrl.training.update import streaming_update


class Peak:
    """Bytes of the storages that graphs hold at once, at most."""

    def __init__(self) -> None:
        self.alive: dict[int, int] = {}
        self.peak = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, key, None)
            self.peak = max(self.peak, sum(self.alive.values()))
        return tensor


def peak_of(folder: Path, rule: str) -> int:
    one = policy(folder, ElboPolicy, budget=260, likelihood={"name": "sdmc", "options": {"rule": rule}})
    rollouts = sampled(one, n=4)
    parsed = core_recipe.parse("gspo", recipes.read("gspo"))
    goal = Objective(parsed, channel="tokens", unit=one.unit, provides=one.provides)
    mask = rollouts.tables["tokens"]["mask_nt"]
    adv = torch.linspace(-1, 1, len(rollouts), dtype=torch.float64)[:, None].expand(mask.shape).contiguous()
    table = Table({"mask_nt": mask, "adv_nt": adv, "keep_n": mask.any(1)}, rollouts.keys)
    found = Peak()
    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(found.pack, lambda x: x):
        done: Any = streaming_update(one, goal, rollouts, table, channel="tokens")
    assert done.pieces == {"gauss-1": 2, "gauss-3": 4}[rule]  # a full piece under each node, and a small one
    return found.peak


def test_three_nodes_need_the_memory_of_one(folders: dict[str, Path]) -> None:
    one, three = (peak_of(folders["llada"], rule) for rule in ("gauss-1", "gauss-3"))
    assert one > 100_000
    assert three <= 1.15 * one
