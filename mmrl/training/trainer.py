"""The one loop: plan, roll out, score, compare inside groups, update. It knows no family and no method.

    selector --plan--> policy.rollout --rewards--> reward_nk --advantage, select--> table --gate, penalties--> update

All that varies is a stage (the recipe), a policy (the family), a selector, or a reward.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.config import Config
from mmrl.core.groups import Groups
from mmrl.core.objective import Objective
from mmrl.core.recipe import Recipe
from mmrl.core.streams import Streams
from mmrl.core.table import Table
from mmrl.errors import RecordError, UserError
from mmrl.rewards.score import Scorer
from mmrl.selection.base import Selector
from mmrl.selection.request import Request
from mmrl.training import measures, random_states, update
from mmrl.training.batch import Scored, minibatches, shuffle_inside_groups, table_of, with_penalties
from mmrl.training.diagnostics import Diagnostics
from mmrl.training.optim import ChannelOptimiser, WeightAverage
from mmrl.training.policy import Policy
from mmrl.training.rollouts import Rollouts

Values = dict[str, Any]
Cursor = tuple[dict[str, Tensor], dict[str, Any]]  # random states, plain values


@dataclass
class Counters:
    """Part of the checkpoint."""

    step: int = 0  # steps done
    skipped_updates: int = 0
    bad_in_a_row: int = 0
    reward_failures: int = 0
    skipped_records: int = 0  # times a record could not be used in a step (data.on_error: skip)
    best: float | None = None
    best_step: int | None = None
    tokens: int = 0
    seconds: float = 0.0  # spent training, over all sessions of the run
    before: dict[str, float] = field(default_factory=dict)


class Trainer:
    """One run. `step()` does one whole step and returns its metrics; files and progress belong to `run.py`."""

    def __init__(
        self,
        config: Config,
        recipe: Recipe,
        policy: Policy,
        selector: Selector,
        scorer: Scorer,
        tell: Callable[[str], None],
    ) -> None:
        self.config, self.recipe, self.policy = config, recipe, policy
        self.selector, self.scorer, self.tell = selector, scorer, tell
        self.channels = sorted({n for n, _ in recipe.phases}) or [policy.channels[0]]
        self.objectives = {
            c: Objective(recipe, channel=c, unit=policy.unit, provides=policy.provides) for c in self.channels
        }
        self.epochs = config.train.epochs or recipe.epochs
        self.minibatches = config.train.minibatches or recipe.minibatches
        total = config.train.steps * self.epochs * self.minibatches
        self.optimisers = {
            c: ChannelOptimiser(policy.parameters_of(c), self._optimiser_config(c), total) for c in self.channels
        }
        self.averages = {
            c: WeightAverage(policy.parameters_of(c), config.ema) for c in self.channels if config.ema.enabled
        }
        self.diagnostics = Diagnostics()
        self.counters = Counters()
        self.last: Scored | None = None  # the newest batch, for people to look at
        self.unread_records = 0  # left out when the data were read (data.on_error: skip)
        self.zero_variance = self._zero_variance()
        if any(o.needs()["ref"] or "kl_nt" in o.needs()[""] for o in self.objectives.values()):
            policy.keep_reference()

    def _optimiser_config(self, channel: str) -> Any:
        own = self.recipe.channel(channel).optimiser
        return self.config.optimiser.model_validate({**self.config.optimiser.model_dump(), **own})

    def _zero_variance(self) -> str:
        choice = self.config.train.zero_variance or ("resample" if self.recipe.dynamic_sampling else "keep")
        if choice in ("mask", "drop"):
            for objective in self.objectives.values():
                if objective.has_absolute_terms:
                    names = (
                        ", ".join(t.name for t in objective.terms_[1:]) or f"advantage {self.recipe.advantage['name']}"
                    )
                    raise UserError(
                        f"train.zero_variance: {choice} would also silence terms that act without reward variance "
                        f"({names}); use keep, or switch those terms off"
                    )
        return choice

    # ---- one step -------------------------------------------------------------------------------------------------
    def step(self) -> Values:
        """Plan, roll out, score, update once. Returns metrics; `warnings` lists new diagnostics."""
        started, step = time.perf_counter(), self.counters.step
        channel = self.recipe.phase(step, self.policy.channels[0])
        streams = Streams(self.config.seed, step)
        scored, timing, counts = self._experience(streams)
        measured = measures.of_rewards(scored, channel)
        scored = self._with_reward(scored)
        updates: Values = {"updates": 0}
        at_update = time.perf_counter()
        if len(scored.rollouts):
            updates = self._updates(scored, channel)
        now = time.perf_counter()
        self.counters.step += 1
        self.counters.seconds += now - started
        tokens = int(measured.get("decisions", 0))
        self.counters.tokens += tokens
        values: Values = {"step": step + 1, "phase": channel, **measured, **counts, **updates, **timing}
        values |= {"seconds/update": now - at_update, "seconds/step": now - started}
        self.last = scored
        values |= {
            "reward_failures": self.counters.reward_failures,
            "skipped_records": self.counters.skipped_records,
        }
        values["tokens_per_s"] = tokens / max(now - started, 1e-9)
        values["warnings"] = self.diagnostics.look(values, self.config.train.ratio_tolerance) + self._constant(scored)
        return values

    def _experience(self, streams: Streams) -> tuple[Scored, Values, Values]:
        """Rollouts with rewards; with `resample`, groups without variance are refilled a bounded number of times."""
        timing: Values = {"seconds/rollout": 0.0, "seconds/reward": 0.0}
        kept: list[Scored] = []
        dropped, rounds, first_key = 0, 0, 0
        requests = self.selector.plan(streams.step)
        while True:
            scored = self._sample(requests, streams, timing, first_key)
            first_key += len(requests)
            rounds += 1
            if self.zero_variance != "resample":
                return scored, timing, {}
            alive = (~scored.flat_n()).nonzero()[:, 0]
            gone = len(requests) - int(torch.unique(scored.rollouts.keys["prompt"][alive]).numel())
            if len(alive):
                kept.append(scored.select(alive))
            dropped += gone
            if gone == 0 or rounds > self.config.train.resample_rounds:
                break
            requests = self.selector.refill(gone)
        result = Scored.concat(kept) if kept else scored.select(torch.arange(0))
        return result, timing, {"resampled_groups": dropped, "resample_rounds": rounds - 1}

    def _sample(self, requests: list[Request], streams: Streams, timing: Values, first_key: int) -> Scored:
        started = time.perf_counter()
        requests, rollouts = self._usable(requests, streams)
        rollouts.keys["prompt"] = rollouts.keys["prompt"] + first_key
        timing["seconds/rollout"] += time.perf_counter() - started
        started = time.perf_counter()
        scored = self._score(rollouts)
        if self.config.train.control == "shuffled":
            scored = shuffle_inside_groups(scored, streams)
        timing["seconds/reward"] += time.perf_counter() - started
        prompt_n = rollouts.keys["prompt"] - first_key
        self.selector.observe(requests, scored.reward_n, prompt_n)
        keep = self.selector.keep_groups(requests, scored.reward_n, prompt_n)
        return scored if bool(keep.all()) else scored.select(keep.nonzero()[:, 0])

    def _usable(self, requests: list[Request], streams: Streams) -> tuple[list[Request], Rollouts]:
        """Rollouts of the requests. With data.on_error: skip, further ones take the place of records that cannot be
        used (any more); each is told and counted. Raises UserError when no record is left."""
        for _ in range(len(self.selector.records) + 1):
            try:
                return requests, self._ask(requests, streams)
            except RecordError as error:
                left = [r for r in requests if r.record.id != error.record_id]
                if self.config.data.on_error != "skip" or len(left) == len(requests):
                    raise
                self.counters.skipped_records += 1
                self.tell(f"record skipped: {error}")
                requests = left + self.selector.refill(len(requests) - len(left))
        raise UserError("data.train: none of the records can be used any more; run mmrl check-data on the file")

    def _ask(self, requests: list[Request], streams: Streams) -> Rollouts:
        if self.recipe.experience != "records":
            return self.policy.rollout(requests, streams)
        rollouts = self.policy.demonstrations([r.record for r in requests], streams)
        for table in rollouts.tables.values():
            table.pop("sampler_logp_nt", None)  # nobody sampled these rows
        return rollouts

    def _score(self, rollouts: Rollouts) -> Scored:
        if self.recipe.experience == "records":  # imitation: every demonstration counts the same
            return Scored(
                rollouts, torch.ones(len(rollouts), 1, dtype=torch.float64), torch.ones(1).double(), ["imitation"]
            )
        result = self.scorer.score(rollouts.outputs, rollouts.records, rollouts.info)
        self.counters.reward_failures += len(result.failures)
        for failure in result.failures[:3]:
            self.tell(f"reward skipped: {failure}")
        reward_nk, weight_k, names = with_penalties(result.reward_nk, result.weight_k, result.names, rollouts.info)
        return Scored(rollouts, reward_nk, weight_k, names)

    def _constant(self, scored: Scored) -> list[str]:
        """Reward components that have said the same of everything for many steps."""
        own = len(self.scorer.names)
        fresh = self.recipe.experience == "fresh" and len(scored.rollouts) > 0
        return self.scorer.watch.update(scored.reward_nk[:, :own]) if fresh else []

    def _with_reward(self, scored: Scored) -> Scored:
        """Rows without any reward leave every statistic and count."""
        rows = torch.isfinite(scored.reward_n).nonzero()[:, 0]
        return scored if len(rows) == len(scored.rollouts) else scored.select(rows)

    # ---- updates --------------------------------------------------------------------------------------------------
    def _updates(self, scored: Scored, channel: str) -> Values:
        objective, rollouts = self.objectives[channel], scored.rollouts
        n_updates = self.epochs * self.minibatches
        self.policy.prepare(rollouts, n_updates)
        flat = scored.flat_n()
        table = self._passes(objective, rollouts, table_of(scored, channel), channel, n_updates)
        table = objective.prepare(table)
        if not objective.signal_without_variance:  # zero variance silences the relative term, whatever the method
            silent = flat & self._shaped_alike(table)
            quiet = torch.where(silent[:, None], torch.zeros_like(table["adv_nt"]), table["adv_nt"])
            table = table.updated({"adv_nt": quiet})
        keep = table["keep_n"] & self.selector.keep_rows(table)
        if self.zero_variance == "drop":
            keep &= ~flat
        rows = keep.nonzero()[:, 0]
        log = measures.UpdateLog()
        done = 0
        for _ in range(self.epochs):
            for part in minibatches(rollouts.keys["prompt"][rows], self.minibatches) if len(rows) else []:
                self._one_update(objective, rollouts, table, rows[part], flat, channel, done, log)
                done += 1
        self.selector.after_update(
            lambda: update.evaluate(self.policy, rollouts, {"logp_nt"}, channel=channel)["logp_nt"]
        )
        self.policy.release(rollouts)
        return log.values(self.optimisers[channel].lr, self.counters.skipped_updates)

    @staticmethod
    def _shaped_alike(table: Table) -> Tensor:
        """Rows of groups of at least two whose shaped rewards (overlong penalty included) are equal too. bool [N]"""
        groups = Groups(table.keys["prompt"])
        return groups.flat(table["reward_n"]) & (groups.count() > 1)

    def _passes(self, objective: Objective, rollouts: Rollouts, table: Table, channel: str, n_updates: int) -> Table:
        """The old pass (several updates, or a stage that asks for it before the update) and the reference pass."""
        needs, early = objective.needs(), objective.needs_before_update()
        old = early["old"] | (needs["old"] if n_updates > 1 else set())
        extra: dict[str, Tensor] = {}
        for prefix, names in (("old", old), ("ref", needs["ref"])):
            if names:
                found = update.evaluate(self.policy, rollouts, names, channel=channel, reference=prefix == "ref")
                extra |= {f"{prefix}_{k}": v for k, v in found.items() if k in names}
        return table.updated(extra)

    def _one_update(
        self,
        objective: Objective,
        rollouts: Rollouts,
        table: Table,
        rows: Tensor,
        flat: Tensor,
        channel: str,
        at: int,
        log: measures.UpdateLog,
    ) -> None:
        """One optimiser step on some rows. zero_variance `mask`: flat rows are counted, not forwarded."""
        counts = None
        if self.zero_variance == "mask":
            full = table.rows(rows).updated({"part_n": torch.zeros(len(rows), dtype=torch.long)})
            counts = objective.coefficients(full)[1]
            rows = rows[~flat[rows]]
        if len(rows) == 0:
            return
        part = rollouts if len(rows) == len(rollouts) else rollouts.select(rows)
        sub = table if len(rows) == len(rollouts) else table.rows(rows)
        result = update.streaming_update(
            self.policy,
            objective,
            part,
            sub,
            channel=channel,
            update=at,
            two_pass=self.config.train.two_pass == "always",
            global_counts=counts,
        )
        optimiser = self.optimisers[channel]
        norm, stepped = optimiser.step(result.loss)
        self._guard(stepped, result.loss, norm)
        if stepped and channel in self.averages:
            self.averages[channel].update(optimiser.steps)
        log.add(result, norm, stepped, sub if at == 0 else None)

    def _guard(self, stepped: bool, loss: float, norm: float) -> None:
        if stepped:
            self.counters.bad_in_a_row = 0
            return
        self.counters.skipped_updates += 1
        self.counters.bad_in_a_row += 1
        self.tell(f"update skipped: loss {loss:g}, gradient norm {norm:g} (not finite)")
        if self.counters.bad_in_a_row >= self.config.train.max_bad_steps:
            raise UserError(
                f"train: {self.counters.bad_in_a_row} updates in a row were not finite; lower optimiser.lr, or "
                "train with model.autocast: off (the last checkpoint is whole)"
            )

    # ---- weights and state ----------------------------------------------------------------------------------------
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
            tensors |= {f"average/{channel}/{i}": v for i, v in enumerate(average.shadow)}
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
        for channel, optimiser in self.optimisers.items():
            optimiser.load_state_dict(under(f"optimiser/{channel}/"), plain["optimisers"][channel])
        for channel, average in self.averages.items():
            average.updates = int(plain["averages"][channel])
            average.shadow = [under(f"average/{channel}/")[str(i)] for i in range(len(average.shadow))]
        random_states.restore(tensors, plain["random"])
