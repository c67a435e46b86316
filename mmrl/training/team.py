"""The processes that train one run together, started by torchrun or accelerate. A team of one talks to nobody.

Every rank holds the same trainer in the same state. A rank samples and scores its share of the prompts (whole groups);
then all ranks see the whole table, so that everything up to advantages and coefficients is computed alike everywhere;
then each runs its own rows through the model, and gradients are added up once per optimiser step. Nothing depends on
the number of ranks but the order in which floats are added.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mmrl.errors import RecordError, UserError
from mmrl.launched import world_size
from mmrl.training.devices import find_device

T = TypeVar("T")

#: Elements of gradients that go over the wire in one message.
BUCKET = 25_000_000


class Team:
    """Rank `rank` of `size`. Collective methods must be called by all ranks, in the same order."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        """group: a process group for plain objects on the CPU; None only when alone."""
        self.rank, self.size, self._group = rank, size, group

    @property
    def main(self) -> bool:
        """The rank that writes files and speaks to people."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[tuple[int, T]]:
        """My items with their numbers: every `size`-th one, so that shares differ by one at most."""
        return [(i, item) for i, item in enumerate(items) if i % self.size == self.rank]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in the order of ranks; tensors among them lie on the CPU."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return any(self.gather(bool(flag)))

    def of_main(self, value: T) -> T:
        """The main rank's value, on every rank (clocks differ, decisions must not)."""
        return self.gather(value)[0]

    def together(self, work: Callable[[], T]) -> T:
        """Each rank's own `work()`. A UserError on one rank is raised on all of them, instead of leaving the others
        waiting: the first rank's in order, so that all act alike (a RecordError names the same record everywhere)."""
        if self.size == 1:
            return work()
        result: Any = None
        error: UserError | None = None
        try:
            result = work()
        except UserError as found:
            error = found
        errors = self.gather(None if error is None else _portable(error))
        first = next((i for i, e in enumerate(errors) if e is not None), None)
        if first is None:
            return result  # type: ignore[no-any-return]
        if error is not None and first == self.rank:
            raise error
        record_id, text = errors[first]  # type: ignore[misc]
        raise (UserError(text) if record_id is None else RecordError(record_id, text)) from error

    def by_main(self, work: Callable[[], T]) -> T:
        """`work()` of the main rank alone; its result and its UserErrors are everybody's."""
        result = self.together(lambda: work() if self.main else None)
        return self.gather(result)[0]  # type: ignore[return-value]

    def check_alike(self, **parts: Any) -> None:
        """Raises UserError on all ranks when they do not agree about a part, e.g. `records`: machines whose data or
        configuration differ would train on mismatched rows."""
        for name, value in parts.items():
            digest = hashlib.sha256(repr(value).encode()).hexdigest()
            if len(set(self.gather(digest))) > 1:
                raise UserError(
                    f"distributed: {name} differ between the processes; give all of them the same files and options"
                )

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over ranks, in buckets. A rank that had no rows counts as zeros."""
        if self.size == 1:
            return
        for bucket in _buckets(list(parameters)):
            for p in bucket:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            if len(bucket) == 1:  # a large one needs no copy
                dist.all_reduce(bucket[0].grad)  # type: ignore[arg-type]
                continue
            flat = torch.cat([p.grad.reshape(-1) for p in bucket])  # type: ignore[union-attr]
            dist.all_reduce(flat)
            for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad.copy_(part.view_as(p))  # type: ignore[union-attr]

    def same_start(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """The main rank's values, on every rank."""
        if self.size > 1:
            for p in parameters:
                dist.broadcast(p.data, src=0)


#: One process: what is used when nothing else is given.
ALONE = Team()


def _portable(error: UserError) -> tuple[str | None, str]:
    """(record id of a RecordError, text)."""
    return (error.record_id, error.problem) if isinstance(error, RecordError) else (None, str(error))


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Neighbours of one type and device, up to BUCKET elements together."""
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for p in parameters:
        same = bucket and (bucket[0].dtype, bucket[0].device) == (p.dtype, p.device)
        if bucket and (not same or size + p.numel() > BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel()
    if bucket:
        yield bucket


@contextmanager
def joined(device: str, *, timeout_s: float) -> Iterator[tuple[Team, str]]:
    """The team of this process and the device it is to use; alone without a launcher.

    timeout_s: how long a rank waits for the others before the run is given up.
    """
    if world_size() == 1:
        yield ALONE, device
        return
    if "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
        raise UserError("WORLD_SIZE is set, RANK or MASTER_ADDR is not: start several processes with torchrun")
    own = _own_device(device)
    find_device(own)  # before torch says it in its own way
    backend = "cpu:gloo,cuda:nccl" if own.startswith("cuda") else "gloo"
    if own.startswith("cuda"):
        torch.cuda.set_device(own)
    begun = not dist.is_initialized()
    if begun:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_s))
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), group), own
    except Exception as error:
        if not isinstance(error, UserError) and not hasattr(error, "signum"):
            raise  # of this rank alone, maybe: the others wait in a collective, and a farewell would wait with them
        if isinstance(error, UserError):
            error.quiet = dist.get_rank() > 0  # rank 0 has it too
        _leave(begun)
        raise
    _leave(begun)


def _leave(begun: bool) -> None:
    if begun:
        dist.destroy_process_group()


def _own_device(device: str) -> str:
    """`auto` and `cuda` mean this process's own GPU. Raises UserError for a device that ranks cannot share a run on."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device: {device} is one device, and several processes train; use auto, cuda or cpu")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
    return device
