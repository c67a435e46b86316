"""Hints for hard prompts and noise for easy ones: the augmentation of DeepVideo-R1 (arXiv 2506.07464).

The paper's procedure inside the trainer's contract, all in one step:

    plan      original inputs
    rewards   Delta = mean of the most recent group means - mean reward of the group; |Delta| > threshold asks for more
    refill    the same records again: easy ones with noisy frames, hard ones with a hint; hard ones without a stored
              trace are first asked for one (the answer stands in the prompt), and hinted in a second refill

Groups that asked for more are trained on in their second form; rows that saw the answer are never trained on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from mmrl.selection import hints
from mmrl.selection.base import Seen, selector
from mmrl.selection.request import Request
from mmrl.selection.uniform import Uniform

WHERE = "selection.options"
MODES = ("hard", "easy", "both")
#: Samples of the second form and of traces are numbered from here: other random numbers than the original ones.
AGAIN, TRACES = 1 << 20, 1 << 21


@dataclass(frozen=True)
class Wish:
    """A group of this step that is to be sampled again. mean: its reward on the original input."""

    request: Request
    delta: float
    level: float
    mean: float


@selector("difficulty")
class Difficulty(Uniform):
    """Uniform prompts; groups far from the recent mean reward are sampled again, made easier or harder.

    window       how many of the most recent group means, of original inputs only, the reference is the mean of.
    reference    a fixed number in place of that mean (the paper's `absolute` form, which it finds worse); null: the
                 mean (`relative`).
    threshold    a group is left alone while |Delta| is not above it.
    reward_max   level = min(|Delta| / reward_max, 1): the largest reward of a row, so that levels use all of 0 .. 1.
    max_hint     share of a trace's words that level 1 shows.
    max_noise    `frame_noise` of the sampling at level 1: deviation of Gaussian noise on frames, of pixels in 0 .. 255.
    modes        hard: hints only; easy: noise only; both.
    traces       samples with the answer in the prompt, of which the best rewarded becomes the record's trace; 0: the
                 record's `response` only. A trace is kept for the rest of the run. It must beat the group's own mean.

    The paper gives no scales, threshold or prompts: those are this project's. An empty window asks for nothing.
    """

    refill_rounds = 2

    def __init__(
        self,
        records: Sequence[Record],
        *,
        prompts: int,
        group: int,
        seed: int,
        shuffle: bool = True,
        window: int = 100,
        reference: float | None = None,
        threshold: float = 0.1,
        reward_max: float = 1.0,
        max_hint: float = 0.5,
        max_noise: float = 50.0,
        modes: Literal["hard", "easy", "both"] = "both",
        traces: int = 4,
    ) -> None:
        super().__init__(records, prompts=prompts, group=group, seed=seed, shuffle=shuffle)
        self._check_values(locals())
        self.reference, self.threshold, self.reward_max = reference, threshold, reward_max
        self.max_hint, self.max_noise, self.modes, self.traces = max_hint, max_noise, modes, traces
        self._means: deque[float] = deque(maxlen=window)
        self._traces: dict[str, str] = {}
        self._first, self._wishes, self._asked = False, list[Wish](), dict[str, Wish]()

    @classmethod
    def check(cls, options: Mapping[str, Any], *, columns: Sequence[str], correct: bool) -> None:
        cls._check_values(options)

    @classmethod
    def input_options(cls, options: Mapping[str, Any]) -> Mapping[str, str]:
        return {} if options.get("modes") == "hard" else {"frame_noise": "set selection.options.modes to hard"}

    def plan(self, step: int) -> list[Request]:
        self._first, self._wishes, self._asked = True, [], {}
        return super().plan(step)

    def refill(self, n: int) -> list[Request]:
        """The groups that are to be sampled again, then records not drawn yet."""
        taken, self._wishes = self._wishes[:n], self._wishes[n:]
        found = [self._again(wish) for wish in taken]
        return found + super().refill(n - len(found))

    def keep_groups(self, requests: Sequence[Request], seen: Seen) -> Tensor:
        """Left out: groups of the plan that are to be sampled again, and rows that saw the answer."""
        keep_n = torch.ones(len(seen.reward_n), dtype=torch.bool)
        means: list[float] = []
        original, self._first = self._first, False
        reference = self._reference()  # of the steps before
        for at, request in enumerate(requests):
            own_n = seen.prompt_n == at
            if request.first_sample >= TRACES:
                self._learn(request, seen, own_n)
                keep_n &= ~own_n
                continue
            mean = _mean(seen.reward_n[own_n])
            if mean is None or request.first_sample >= AGAIN:
                continue
            means.append(mean)
            wish = self._wish(request, mean, reference) if original else None
            if wish is not None:
                self._wishes.append(wish)
                keep_n &= ~own_n
        self._means.extend(means)
        return keep_n

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "means": list(self._means), "traces": dict(self._traces)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._means = deque((float(mean) for mean in state["means"]), maxlen=self._means.maxlen)
        self._traces = {str(record): str(trace) for record, trace in state["traces"].items()}

    def _reference(self) -> float | None:
        if self.reference is not None:
            return self.reference
        return sum(self._means) / len(self._means) if self._means else None

    def _wish(self, request: Request, mean: float, reference: float | None) -> Wish | None:
        """None where the group may stay as it is."""
        if reference is None:
            return None
        delta = reference - mean
        hard = delta > 0
        if abs(delta) <= self.threshold or self.modes == ("easy" if hard else "hard"):
            return None
        if hard and not self._can_hint(request.record):
            return None
        return Wish(request, delta, min(abs(delta) / self.reward_max, 1.0), mean)

    def _can_hint(self, record: Record) -> bool:
        if record.id not in self._traces and record.response is not None:
            self._traces[record.id] = hints.reasoning(record.response, record)
        return bool(self._traces.get(record.id)) or (self.traces > 0 and hints.ask(record) is not None)

    def _again(self, wish: Wish) -> Request:
        """The group's second form, or first a request for traces."""
        request = replace(wish.request, first_sample=AGAIN + wish.request.first_sample)
        if wish.delta < 0:
            return replace(request, sampling={**request.sampling, "frame_noise": wish.level * self.max_noise})
        record = request.record
        trace = self._traces.get(record.id, "")
        if trace or record.id in self._asked:  # asked in vain: once more without help
            return replace(request, prompt_edit=hints.hint(trace, wish.level * self.max_hint))
        self._asked[record.id] = wish
        return replace(
            request, n=self.traces, prompt_edit=hints.ask(record), first_sample=TRACES + wish.request.first_sample
        )

    def _learn(self, request: Request, seen: Seen, own_n: Tensor) -> None:
        """Keep the best rewarded trace; the group then asks for its hint."""
        wish = self._asked[request.record.id]
        reward_n = torch.where(own_n & torch.isfinite(seen.reward_n), seen.reward_n, -torch.inf)
        best = int(reward_n.argmax())
        if seen.outputs is not None and float(reward_n[best]) > wish.mean:
            self._traces[request.record.id] = hints.reasoning(seen.outputs[best], request.record)
        self._wishes.append(wish)

    @staticmethod
    def _check_values(options: Mapping[str, Any]) -> None:
        def number(name: str, low: float, high: float = float("inf"), *, above: bool = False) -> None:
            value = options.get(name, low + 1e-3)
            real = isinstance(value, Real) and not isinstance(value, bool)
            if not real or not low <= value <= high or (above and value == low):
                limits = (
                    f" above {low:g}" if above else f" from {low:g} on" if high > 1e9 else f" from {low:g} to {high:g}"
                )
                limits = "" if low < -1e9 else limits
                raise UserError(f"{WHERE}.{name}: must be a number{limits}, got {value!r}")

        for name, least in (("window", 1), ("traces", 0)):
            value = options.get(name, least)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 100_000:
                raise UserError(f"{WHERE}.{name}: must be a whole number of at least {least}, got {value!r}")
        number("threshold", 0.0)
        number("reward_max", 0.0, above=True)
        number("max_hint", 0.0, 1.0)
        number("max_noise", 0.0)
        if options.get("reference") is not None:
            number("reference", -float("inf"))
        if (modes := options.get("modes", "both")) not in MODES:
            raise UserError(f"{WHERE}.modes: must be hard, easy or both, got {modes!r}{nearest(str(modes), MODES)}")


def _mean(reward_n: Tensor) -> float | None:
    """Mean of the rewards there are."""
    known = reward_n[torch.isfinite(reward_n)]
    return float(known.double().mean()) if len(known) else None
