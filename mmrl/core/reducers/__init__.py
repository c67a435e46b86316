"""Logit reducers: channels computed from one chunk of logits while the head is walked, so that [N,T,V] never exists.

A reducer is a pure function `f(logits_ncv, hidden_ncd, **context) -> [n, c]`; a policy calls it on chunks that hold the
rows its scope asks for. A stage asks for its channel by name, like for any other; no policy has to know it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mmrl.core.channels import CHANNELS, Channel, add_channel
from mmrl.core.registry import SCOPES


@dataclass(frozen=True)
class Reducer:
    """`fn` fills `channel`; `scope` is what one chunk must hold: rows alone, or whole groups."""

    channel: str
    fn: Callable[..., Tensor]
    scope: str


REDUCERS: dict[str, Reducer] = {}


def constant(channel: str) -> bool:
    """A reducer fills this channel without gradient: it may run once, without a graph and without recomputation."""
    return channel in REDUCERS and not CHANNELS[channel].grad


def reducer(
    channel: str, *, meaning: str, scope: str = "decision", grad: bool = False
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator: fill a channel `<name>_nt`. `meaning` enters the table of channels when the channel is new."""
    if scope not in SCOPES:
        raise TypeError(f"unknown scope {scope!r}; scopes: {', '.join(SCOPES)}")

    def register(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if channel in REDUCERS and REDUCERS[channel].fn.__module__ != fn.__module__:
            raise TypeError(f"channel {channel!r} has a reducer already, in {REDUCERS[channel].fn.__module__}")
        if channel not in CHANNELS:
            add_channel(Channel(channel, "nt", grad, "policy", meaning))
        REDUCERS[channel] = Reducer(channel, fn, scope)
        return fn

    return register
