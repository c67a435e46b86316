"""A dry call of a stage on a table of two rows, so that a wrong option value is refused before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mmrl.core.channels import axes_of
from mmrl.core.registry import Bound
from mmrl.core.table import Table

N, T, K = 2, 2, 1


class _EveryName(dict[str, torch.Tensor]):
    """Keys or segments under any name: which names exist is known only once there are rollouts."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def __contains__(self, name: object) -> bool:
        return True

    def __bool__(self) -> bool:
        return True

    def __missing__(self, name: str) -> torch.Tensor:
        return self.value


def probe_table(names: tuple[str, ...], components: int = K) -> Table:
    """Zeros (masks: True) for the named channels; part_n, lengths and limits are ones."""
    sizes = {"n": N, "t": T, "k": components}
    channels: dict[str, Any] = {}
    for name in names:
        axes = axes_of(name)
        if not axes:
            continue
        shape = [sizes[a] for a in axes]
        if name in ("mask_nt", "scored_nt", "keep_n", "finished_n", "correct_n"):
            channels[name] = torch.ones(shape, dtype=torch.bool)
        elif name in ("length_n", "limit_n", "part_n"):
            channels[name] = torch.ones(shape, dtype=torch.long)
        else:
            channels[name] = torch.zeros(shape)
    keys = _EveryName(torch.zeros(N, dtype=torch.long))
    return Table(channels, keys, _EveryName(torch.zeros(N, T, dtype=torch.long)))


def probe(bound: Bound, given: Mapping[str, Any]) -> str | None:
    """The complaint of the stage about its options, or None. `given`: channels with a known value (clip widths)."""
    closed_forms = set(bound.stage.instead.values())  # left out: they would hide the options of the estimator
    names = (*bound.stage.required, *bound.stage.optional)
    modes = bound.options.get("modes")  # an option with an entry per reward component: as many are tried
    components = len(modes) if isinstance(modes, list) and modes else K
    table = probe_table(tuple(n for n in names if n not in closed_forms), components).updated(dict(given))
    widths = [n for n in ("eps_low_nt", "eps_high_nt") if n not in given]
    table = Table({k: v for k, v in table.channels.items() if k not in widths}, table.keys, table.segments)
    try:
        bound(table)
    except (ValueError, TypeError) as error:
        return str(error).splitlines()[0]
    except (IndexError, KeyError, RuntimeError):  # two rows of zeros are not enough for this stage: nothing is learnt
        return None
    return None
