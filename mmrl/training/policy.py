"""The contract between the one trainer and a family of models. Axes: N rollouts, T decisions.

A family says how to sample and how likely a sample is; it knows nothing of rewards, advantages or losses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.rollouts import Request, Rollouts

Unit = Literal["decision", "row", "element-mean"]
#: What a piece must hold at once: single decisions, whole segments of rows, whole rows, whole groups, everything.
Scope = Literal["decision", "segment", "row", "group", "batch"]


@dataclass
class Piece:
    """The smallest graph that must live at once.

    rows      indices into the Rollouts given to `pieces` (int64 [n]).
    columns   the decisions it evaluates: None for all T, else int64 [c].
    data      family-private.
    idle      it runs with coefficients of zero, to keep step with ranks that have more pieces.
    own       the decisions it evaluates where they differ from row to row: bool [n, T]; its tables are 0 elsewhere.
    share     its values are summands: other pieces add theirs to the same decisions (nodes of a quadrature).
    """

    rows: torch.Tensor
    columns: torch.Tensor | None = None
    data: Any = None
    idle: bool = False
    own: torch.Tensor | None = None
    share: bool = False

    @property
    def whole_rows(self) -> bool:
        """It holds all there is to know of its rows."""
        return self.columns is None and self.own is None and not self.share


@dataclass
class Bundle:
    """Pieces that share a forward (a prompt's prefix); `data` is family-private."""

    pieces: list[Piece]
    data: Any = None


@dataclass(frozen=True)
class Needs:
    """What one evaluation must return.

    channels  names without pass prefix, e.g. {"logp_nt", "entropy_nt"}; a subset of what the policy provides.
    reducers  logit reducers by the channel they fill: `f(logits_ncv, hidden_ncd, **context) -> [n, c]`, called on
              chunks while the head is walked, so that [N,T,V] never exists.
    """

    channels: frozenset[str]
    reducers: dict[str, Callable[..., torch.Tensor]] = field(default_factory=dict)


class Policy(ABC):
    """A family implements this once; every recipe then works with it."""

    unit: Unit = "decision"  # what one log-probability in the table stands for
    channels: tuple[str, ...] = ("tokens",)  # the first one is the main channel
    provides: frozenset[str] = frozenset({"logp_nt"})  # what `combine` can return for some channel, without prefix
    keys: frozenset[str] = frozenset({"prompt"})  # names in `Rollouts.keys`
    segments: frozenset[str] = frozenset()  # names in `Rollouts.segments`, of every channel
    densities: frozenset[str] = frozenset()  # channels of real-valued actions: their entropy may have any sign
    INPUT_OPTIONS: tuple[str, ...] = ()  # overrides in a request's `sampling` that change what the model is shown
    reduces: bool = False  # `evaluate` runs logit reducers (Needs.reducers)
    dense: bool = False  # rollouts can hold an output per decision (`Rollouts.steps`), for rewards per decision
    sampler_exact: bool = False  # the sampler's log-probs come from the update's own code: no old pass is needed
    gallery_rows: int = 1  # outputs of a held-out record that the sample gallery keeps
    noise_per_update: bool = False  # `prepare` stores masks or seeds per inner update: old and ref passes follow it

    @classmethod
    def offers(cls, channel: str) -> frozenset[str]:
        """What `combine` can return for the decisions of one channel. A policy that was loaded may have less than its
        class, by a narrower `provides`; see `offered`. Asked before weights load, too."""
        return cls.provides

    @property
    def noisy(self) -> bool:
        """Two passes over the same rows may differ (dropout): the ratio check then says nothing."""
        return False

    @property
    def device(self) -> torch.device:
        """Where `evaluate` returns its tables; rollouts stay on the CPU."""
        return torch.device("cpu")

    @abstractmethod
    def rollout(self, requests: Sequence[Request], streams: Streams, *, greedy: bool = False) -> Rollouts:
        """Sample. `keys["prompt"]` numbers the requests 0..B-1 unless the request's own keys say otherwise.

        Raises RecordError for a record that cannot be used, before anything is sampled: with data.on_error: skip the
        trainer asks again without it.
        """

    @abstractmethod
    def demonstrations(self, records: Sequence[Record], streams: Streams) -> Rollouts:
        """Rows that hold each record's `response` instead of a sample (recipe `sft`)."""

    def meet(self, records: Sequence[Record]) -> list[str]:
        """Called once with all records of the run, before anything is sampled: encode prompts, free encoders. Returns
        a line for each thing that people should know (prompts too long)."""
        return []

    def look_ahead(self, requests: Sequence[Request]) -> None:  # noqa: B027  (few families have anything to prepare)
        """Called before the update with requests that the next step will probably make: read and encode them beside it.
        They may differ; faults are raised where the records are really asked for."""

    def expect(self, channels: frozenset[str]) -> None:  # noqa: B027
        """Called once before the first rollout, with every channel that the recipe asks for, so that rollouts keep
        what they need later and nothing else. `reward_ntk` is among them for a policy with `dense` only."""

    def prepare(self, rollouts: Rollouts, n_updates: int) -> None:  # noqa: B027  (most families store nothing)
        """Store masks or seeds per inner update, shared by old, current and reference evaluation."""

    def release(self, rollouts: Rollouts) -> None:  # noqa: B027
        """Forget what was cached for these rollouts; their step is over."""

    @abstractmethod
    def bundles(self, rollouts: Rollouts, *, channel: str, update: int, scope: Scope) -> list[Bundle]:
        """Split the rows into pieces, each holding at least `scope`, grouped by what they share."""

    def open(self, bundle: Bundle, *, grad: bool) -> Any:
        """Run what the pieces of a bundle share; its results are leaves that collect the pieces' gradients."""
        return None

    @abstractmethod
    def evaluate(self, piece: Piece, shared: Any, needs: Needs) -> dict[str, torch.Tensor]:
        """Raw tables of the piece, [n, c] each, with gradient when grad mode is on."""

    def close(self, shared: Any) -> None:  # noqa: B027
        """Backward through what was shared, once all pieces of the bundle have been backwarded."""

    def combine(self, raws: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Raw tables -> channels of the core. Pure; may be non-linear. Identity unless a family says otherwise."""
        return raws

    @abstractmethod
    def reference(self) -> AbstractContextManager[None]:
        """Inside, `evaluate` uses the weights of step 0."""

    def whole(self) -> AbstractContextManager[None]:
        """Inside, every rank holds all weights, so that forwards without gradient talk to nobody. For a policy in
        shards all ranks enter and leave it together; any other one holds them anyway."""
        return nullcontext()

    def shard(self, size: int) -> None:
        """Spread weights, gradients and optimiser state over the `size` ranks of the run (distributed.mode: fsdp2).

        Called before the first rollout. To keep step with other ranks `evaluate` then also runs rows that `prepare` was
        not given, with coefficients of zero.
        """
        raise UserError(f"distributed.mode: fsdp2 is not available for {type(self).__name__}; use ddp")

    @property
    def sharded(self) -> bool:
        """`shard` was called: pieces with gradient run in lockstep on all ranks, gradients add up by themselves."""
        return False

    @abstractmethod
    def parameters_of(self, channel: str) -> list[torch.nn.Parameter]:
        """Trainable parameters of a channel. Those of different channels are different tensors."""

    def stepped(self, channel: str) -> None:  # noqa: B027  (most families count nothing)
        """An optimiser step of this channel was applied (not one that was left out for a gradient that is not finite).
        What a policy counts here it must keep in `state_dict`."""

    @abstractmethod
    def keep_reference(self, channel: str) -> None:
        """Called before the first update, once for each channel that a recipe compares with its start (`ref_` channels,
        or a closed-form KL): copy its weights if no adapter can be switched off. A policy never asked keeps no copy."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the model in the format its ecosystem loads."""

    @abstractmethod
    def state_dict(self) -> dict[str, torch.Tensor]:
        """Trainable tensors (exact dtype) for resuming."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Inverse of `state_dict`; raises UserError on tensors of another model."""

    def describe(self, rollouts: Rollouts, rows: Iterable[int]) -> list[dict[str, Any]]:
        """What the sample gallery shows per row: {"prompt": str, "output": str, "images": [PIL], "boxes": [...]}, and
        optionally how it came to be: "trajectory", lines of text, or "filling", one picture."""
        return [{"prompt": str(rollouts.records[i].prompt), "output": str(rollouts.outputs[i])} for i in rows]

    def token_texts(self, rollouts: Rollouts, row: int) -> list[str]:
        """The text of each decision of a row, for people; [] where decisions are no texts."""
        return []

    def profiles(self, rollouts: Rollouts) -> dict[str, dict[str, list[float]]]:
        """What the report draws of the policy itself, before and after: by name, numbers over the decisions of the
        gallery's greedy rollouts. {"x": [T], "mean": [T]} and optionally "spread" and "base", [T] each, all finite."""
        return {}


def offered(policy: Policy | type[Policy], channel: str) -> frozenset[str]:
    """What a policy, or a class before any weights load, can return for a channel, without pass prefix."""
    return policy.provides & policy.offers(channel)
