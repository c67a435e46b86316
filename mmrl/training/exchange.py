"""What ranks tell each other of their rollouts: everything but the rows' payload, which stays where it was sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmrl.core.streams import Streams
from mmrl.errors import UserError
from mmrl.training.batch import Scored
from mmrl.training.policy import Policy
from mmrl.training.rollouts import Request, Rollouts
from mmrl.training.team import Team

#: Longest side of a picture that ranks tell each other of after it was scored where it was made.
THUMBNAIL = 32


def thumbnail(output: Any) -> Any:
    """A picture [C, H, W] with sides of at most 32, by averaging; anything else, and small pictures, as they are."""
    if not isinstance(output, torch.Tensor) or output.dim() != 3 or max(output.shape[1:]) <= THUMBNAIL:
        return output
    size = (min(output.shape[1], THUMBNAIL), min(output.shape[2], THUMBNAIL))
    return torch.nn.functional.adaptive_avg_pool2d(output, size)


def gather_rollouts(
    team: Team,
    part: Rollouts | None,
    shared: Sequence[tuple[int, Request]],
    requests: Sequence[Request],
    *,
    whole_outputs: bool = True,
) -> Rollouts:
    """All rows of `requests`, in their order; `rows` is None for those of other ranks.

    whole_outputs: otherwise pictures of other ranks come as thumbnails: thousands of whole ones would fill the memory.

    part, shared: this rank's rollouts, whose `keys["prompt"]` count its own requests from 0, and these with their
    numbers; None when its share is empty.
    """
    if team.size == 1 and part is not None:
        return part
    if any("prompt" in request.keys for request in requests):
        raise UserError(
            "selection.name: this selector numbers prompts itself, which several processes cannot share out"
        )
    mine = None if part is None else _numbered(part, [number for number, _ in shared])
    light = None if mine is None else replace(mine, rows=[None] * len(mine), records=[])
    if light is not None and not whole_outputs:
        light = replace(light, outputs=[thumbnail(output) for output in light.outputs])
    parts = []
    for rank, found in enumerate(team.gather(light)):
        if found is not None:
            records = [requests[number].record for number in found.keys["prompt"].tolist()]
            parts.append(replace(found, records=records) if rank != team.rank or mine is None else mine)
    whole = Rollouts.concat(parts)
    return whole.select(torch.argsort(whole.keys["prompt"], stable=True))


def gather_scored(
    team: Team, part: Scored | None, shared: Sequence[tuple[int, Request]], requests: Sequence[Request]
) -> Scored:
    """The same with the rewards."""
    if team.size == 1 and part is not None:
        return part
    own = None if part is None else part.rollouts
    rollouts = gather_rollouts(team, own, shared, requests, whole_outputs=False)
    told = team.gather(None if part is None else _rewards(part, [number for number, _ in shared]))
    parts = [t for t in told if t is not None]
    prompt_n = torch.cat([t[0] for t in parts])
    order = torch.argsort(prompt_n, stable=True)
    dense = [t[4] for t in parts if t[4] is not None]
    reward_ntk = torch.cat(dense)[order] if dense else None
    return Scored(rollouts, torch.cat([t[1] for t in parts])[order], parts[0][2], parts[0][3], reward_ntk)


def _numbered(part: Rollouts, numbers: list[int]) -> Rollouts:
    prompt_n = torch.tensor(numbers, dtype=torch.long)[part.keys["prompt"]]
    return replace(part, keys={**part.keys, "prompt": prompt_n})


def _rewards(part: Scored, numbers: list[int]) -> tuple[Tensor, Tensor, Tensor, list[str], Tensor | None]:
    prompt_n = torch.tensor(numbers, dtype=torch.long)[part.rollouts.keys["prompt"]]
    return prompt_n, part.reward_nk, part.weight_k, part.names, part.reward_ntk


def spread(team: Team, tables: dict[str, Tensor], rollouts: Rollouts, names: Sequence[str]) -> dict[str, Tensor]:
    """Tables [n, ...] of this rank's rows (`rollouts.mine`, in that order) -> tables of all rows, on the CPU."""
    told = team.gather((rollouts.mine, {name: tables[name].detach().cpu() for name in names if name in tables}))
    out: dict[str, Tensor] = {}
    for name in names:
        for index, found in told:
            if name in found:
                value = found[name]
                out.setdefault(name, value.new_zeros((len(rollouts), *value.shape[1:])))[index] = value
    return out


class SharedPolicy:
    """A policy whose `rollout` is shared out: each rank samples a part, all get all outputs (for evaluation)."""

    def __init__(self, policy: Policy, team: Team) -> None:
        self._policy, self._team = policy, team

    def rollout(self, requests: Sequence[Request], streams: Streams, *, greedy: bool = False) -> Rollouts:
        shared = self._team.share(requests)
        own = [request for _, request in shared]
        part = self._team.together(lambda: self._policy.rollout(own, streams, greedy=greedy) if own else None)
        return gather_rollouts(self._team, part, shared, requests)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)


@contextmanager
def shared_policy(policy: Policy, team: Team) -> Iterator[Any]:
    """For evaluation: whole weights on every rank, rollouts shared out. All ranks enter it together."""
    with policy.whole():
        yield policy if team.size == 1 else SharedPolicy(policy, team)
