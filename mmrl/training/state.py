"""What of a trainer goes into a checkpoint, and how it comes back."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmrl.rewards.score import Scorer
from mmrl.selection.base import Selector
from mmrl.training import measures, random_states
from mmrl.training.diagnostics import Diagnostics
from mmrl.training.optim import ChannelOptimiser, WeightAverage
from mmrl.training.policy import Policy
from mmrl.training.prompt_statistics import PromptStatistics
from mmrl.training.sharding import put, to_save

Cursor = tuple[dict[str, Tensor], dict[str, Any]]  # random states, plain values


@dataclass
class Counters:
    """Part of the checkpoint."""

    step: int = 0  # steps done
    skipped_updates: int = 0
    bad_in_a_row: int = 0
    empty_in_a_row: int = 0
    reward_failures: int = 0
    skipped_records: int = 0  # times a record could not be used in a step (data.on_error: skip)
    best: float | None = None
    best_step: int | None = None
    tokens: int = 0
    seconds: float = 0.0  # spent training, over all sessions of the run
    seconds_cpu: float = 0.0  # the same in processor time of this process; a busy machine adds nothing to it
    before: dict[str, float] = field(default_factory=dict)


class Resumable:
    """The parts of a trainer that decide the rest of its run."""

    policy: Policy
    selector: Selector
    scorer: Scorer
    counters: Counters
    diagnostics: Diagnostics
    statistics: PromptStatistics | None
    optimisers: dict[str, ChannelOptimiser]
    averages: dict[str, WeightAverage]

    def averaged(self) -> AbstractContextManager[None]:
        """The weights that evaluation, samples and saved models use: the running average when there is one."""
        if not self.averages:
            return nullcontext()
        if len(self.averages) == 1:
            return next(iter(self.averages.values())).swapped_in()
        return measures.entered([a.swapped_in() for a in self.averages.values()])

    def cursor(self) -> Cursor:
        """(random states, plain values): the part of the state that is small."""
        plain: dict[str, Any] = {
            "counters": vars(self.counters).copy(),
            "selector": self.selector.state_dict(),
            "scorer": self.scorer.state_dict(),
            "diagnostics": self.diagnostics.state_dict(),
            "statistics": None if self.statistics is None else self.statistics.state_dict(),
            "averages": {c: a.updates for c, a in self.averages.items()},
            "random": random_states.plain(),
        }
        return random_states.tensors(), copy.deepcopy(plain)  # a selector may hand out what it goes on changing

    def state(self, cursor: Cursor | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values): all that decides the rest of the run. `cursor`: an earlier one, to go back to the
        start of a step that failed before it changed a weight."""
        random, small = cursor or self.cursor()
        plain: dict[str, Any] = {**small, "optimisers": {}}
        tensors = {f"policy/{k}": v for k, v in self.policy.state_dict().items()} | random
        for channel, optimiser in self.optimisers.items():
            state, plain["optimisers"][channel] = optimiser.state_dict()
            tensors |= {f"optimiser/{channel}/{k}": v for k, v in state.items()}
        for channel, average in self.averages.items():
            tensors |= {f"average/{channel}/{i}": to_save(v) for i, v in enumerate(average.shadow)}
        return tensors, plain

    @property
    def optimiser_steps(self) -> int:
        """Updates made so far, over all channels."""
        return sum(o.steps for o in self.optimisers.values())

    def load_state(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        def under(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.policy.load_state_dict(under("policy/"))
        self.counters = Counters(**plain["counters"])
        self.selector.load_state_dict(plain["selector"])
        self.scorer.load_state_dict(plain["scorer"])
        self.diagnostics.load_state_dict(plain["diagnostics"])
        if self.statistics is not None and plain.get("statistics") is not None:
            self.statistics.load_state_dict(plain["statistics"])
        for channel, optimiser in self.optimisers.items():
            optimiser.load_state_dict(under(f"optimiser/{channel}/"), plain["optimisers"][channel])
        for channel, average in self.averages.items():
            average.updates = int(plain["averages"][channel])
            saved = under(f"average/{channel}/")
            for i, mean in enumerate(average.shadow):  # in place: the saved ones lie in main memory
                put(mean, saved[str(i)])
        random_states.restore(tensors, plain["random"])
