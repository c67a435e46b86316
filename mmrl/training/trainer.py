"""The one loop: plan, roll out, score, compare inside groups, update. It knows no family and no method.

    selector --plan--> policy.rollout --rewards--> reward_nk --advantage, select--> table --gate, penalties--> update

All that varies is a stage (the recipe), a policy (the family), a selector, or a reward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmrl.config import Config
from mmrl.core.groups import Groups
from mmrl.core.objective import Objective
from mmrl.core.recipe import Recipe
from mmrl.core.streams import Streams
from mmrl.core.table import Table
from mmrl.errors import UserError
from mmrl.rewards.score import Scorer
from mmrl.selection.base import Selector
from mmrl.training import measures, scoring, update
from mmrl.training.batch import Scored, minibatches, table_of
from mmrl.training.diagnostics import Diagnostics
from mmrl.training.experience import Experience
from mmrl.training.objectives import channels_of, gap_tolerance, objectives, optimiser_settings
from mmrl.training.optim import ChannelOptimiser, WeightAverage
from mmrl.training.policy import Policy
from mmrl.training.prompt_statistics import PromptStatistics
from mmrl.training.rollouts import Rollouts
from mmrl.training.state import Counters
from mmrl.training.team import ALONE, Team
from mmrl.training.token_weights import Weighing, weighing

Values = dict[str, Any]


class Trainer(Experience):
    """One run. `step()` does one whole step and returns its metrics; files and progress belong to `run.py`."""

    def __init__(
        self,
        config: Config,
        recipe: Recipe,
        policy: Policy,
        selector: Selector,
        scorer: Scorer,
        tell: Callable[[str], None],
        team: Team = ALONE,
    ) -> None:
        self.config, self.recipe, self.policy, self.team = config, recipe, policy, team
        self.selector, self.scorer, self.tell = selector, scorer, tell
        imitation = recipe.experience == "records"
        self.scoring = scoring.Scoring(scorer, parts=config.rewards.beside, imitation=imitation)
        self.channels = channels_of(recipe, policy)
        self.objectives = objectives(recipe, policy, selector)
        self.epochs = config.train.epochs or recipe.epochs
        self.minibatches = config.train.minibatches or recipe.minibatches
        per_step = self.epochs * self.minibatches
        turns = [recipe.phase(step, policy.channels[0]) for step in range(config.train.steps)]
        self.optimisers = {
            c: ChannelOptimiser(
                policy.parameters_of(c), optimiser_settings(config, recipe, c), turns.count(c) * per_step
            )
            for c in self.channels
        }
        _check_apart({c: o.parameters for c, o in self.optimisers.items()})
        self.averages = {
            c: WeightAverage(policy.parameters_of(c), config.ema) for c in self.channels if config.ema.enabled
        }
        self.diagnostics = Diagnostics(by_phase=len(self.channels) > 1, densities=policy.densities)
        kept = config.train.prompt_statistics
        tracked = any(o.needs_tracker for o in self.objectives.values())
        self.statistics = PromptStatistics(kept.buffer, kept.min_count) if tracked else None
        self.counters = Counters()
        self.turn = 0  # steps that have trained the channel of the newest one
        self.last: Scored | None = None  # the newest batch, for people to look at
        self.unread_records = 0  # left out when the data were read (data.on_error: skip)
        self.zero_variance = self._zero_variance()
        if policy.noisy and config.train.two_pass == "always":
            raise UserError(
                "train.two_pass: always needs two equal passes, which model.allow_dropout prevents; use auto"
            )
        for channel, objective in self.objectives.items():
            if objective.needs()["ref"] or "kl_nt" in objective.needs()[""]:
                policy.keep_reference(channel)
        policy.expect(self._expected())

    def weighing(self) -> Weighing | None:
        """How the recipe weighs the tokens of a group; None where it does not."""
        channel = self.policy.channels[0]
        objective = self.objectives.get(channel)
        return weighing(channel, objective, self.config.train.group) if objective else None

    def _expected(self) -> frozenset[str]:
        """Every channel that some stage asks of the policy's rollouts, without the name of a pass."""
        needed = {name for o in self.objectives.values() for names in o.needs().values() for name in names}
        return frozenset(needed | {"reward_ntk" for o in self.objectives.values() if o.needs_dense})

    def _zero_variance(self) -> str:
        choice = self.config.train.zero_variance or ("resample" if self.recipe.dynamic_sampling else "keep")
        if choice == "resample" and (self.recipe.experience == "records" or self.config.train.group < 2):
            raise UserError(
                "train.zero_variance: resample would drop everything: no group here has more than one sample"
            )
        local = any(t.reduce.stage.name == "token-mean-local" for o in self.objectives.values() for t in o.terms_)
        if choice == "mask" and local:
            raise UserError(
                "train.zero_variance: mask counts rows that token-mean-local has no micro-batch for; use drop"
            )
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

    @property
    def finished(self) -> bool:
        """All steps are done, or the training time is used up (train.max_seconds; earlier sessions count)."""
        limit = self.config.train.max_seconds
        return self.counters.step >= self.config.train.steps or limit is not None and self.counters.seconds >= limit

    # ---- one step -------------------------------------------------------------------------------------------------
    def step(self) -> Values:
        """Plan, roll out, score, update once. Returns metrics; `signs`: what looks wrong now, or no longer."""
        started, started_cpu, step = time.perf_counter(), time.process_time(), self.counters.step
        channel = self.recipe.phase(step, self.policy.channels[0])
        self.turn = self.recipe.turn(step, self.policy.channels[0]) + 1
        streams = Streams(self.config.seed, step)
        scored, timing, counts = self._experience(streams)
        measured = measures.of_rewards(scored, channel)
        if self.recipe.experience == "records":
            measured.pop("flat_groups", None)  # every demonstration counts the same: nothing is compared
        scored = self._with_reward(scored)
        updates: Values = {"updates": 0}
        at_update = time.perf_counter()
        if len(scored.rollouts):
            updates = self._updates(scored, channel)
        now = time.perf_counter()
        self.counters.step += 1
        self.counters.seconds += self.team.of_main(now - started)
        self.counters.seconds_cpu += time.process_time() - started_cpu
        self._stop_if_empty(updates)
        tokens = int(measured.get("decisions", 0))
        self.counters.tokens += tokens
        values: Values = {"step": step + 1, "phase": channel, **measured, **counts, **updates, **timing}
        values |= {"seconds/update": now - at_update, "seconds/step": now - started}
        self.last = scored
        values |= {
            "reward_failures": self.counters.reward_failures,
            "skipped_records": self.counters.skipped_records,
        }
        tolerance = gap_tolerance(self.objectives[channel], self.config.train.ratio_tolerance)
        values["tokens_per_s"] = tokens / max(now - started, 1e-9)
        values["signs"] = self.diagnostics.look(values, tolerance, self._constant(scored))
        return values

    def _constant(self, scored: Scored) -> dict[str, float] | None:
        """Reward components that have said the same of everything for many steps; None without fresh samples."""
        if self.recipe.experience != "fresh" or not len(scored.rollouts):
            return None
        self.scorer.watch.update(scored.reward_nk[:, : len(self.scorer.names)])
        return self.scorer.watch.constant()

    def _with_reward(self, scored: Scored) -> Scored:
        """Rows without any reward leave every statistic and count."""
        rows = torch.isfinite(scored.reward_n).nonzero()[:, 0]
        return scored if len(rows) == len(scored.rollouts) else scored.select(rows)

    # ---- updates --------------------------------------------------------------------------------------------------
    def _updates(self, scored: Scored, channel: str) -> Values:
        objective, rollouts = self.objectives[channel], scored.rollouts
        n_updates = self.epochs * self.minibatches
        own = rollouts if self.team.size == 1 else rollouts.select(rollouts.mine)
        self.policy.prepare(own, n_updates)
        passes = self._passes(objective, rollouts, channel, n_updates)
        table = objective.prepare(table_of(scored, channel).updated(passes[0] | self._statistics_of(scored)))
        silent = scored.flat_n() & self._shaped_alike(table)
        if not objective.signal_without_variance:  # zero variance silences the relative term, whatever the method
            quiet = torch.where(silent[:, None], torch.zeros_like(table["adv_nt"]), table["adv_nt"])
            table = table.updated({"adv_nt": quiet})
        keep = table["keep_n"] & self.selector.keep_rows(table)
        if self.zero_variance == "drop":
            keep &= ~silent
        rows = keep.nonzero()[:, 0]
        log = measures.UpdateLog()
        done = 0
        for _ in range(self.epochs):
            for part in minibatches(rollouts.keys["prompt"][rows], self.minibatches) if len(rows) else []:
                now = table.updated(passes[done % len(passes)])
                self._one_update(objective, rollouts, now, rows[part], silent, channel, done, log)
                done += 1
        self.selector.after_update(
            lambda: update.evaluate(self.policy, rollouts, {"logp_nt"}, channel=channel, team=self.team)["logp_nt"]
        )
        self.policy.release(own)
        return log.values(self.optimisers[channel].last_lr, self.counters.skipped_updates) | objective.told(table)

    def _statistics_of(self, scored: Scored) -> dict[str, Tensor]:
        """Mean and deviation of the rewards of each row's prompt, over steps, this one included; if asked for."""
        if self.statistics is None:
            return {}
        mean_n, std_n = self.statistics.update([r.id for r in scored.rollouts.records], scored.reward_n)
        return {"prompt_mean_n": mean_n, "prompt_std_n": std_n}

    @staticmethod
    def _shaped_alike(table: Table) -> Tensor:
        """Rows of groups of at least two whose shaped rewards (overlong penalty included) are equal too. bool [N]"""
        groups = Groups(table.keys["prompt"])
        return groups.flat(table["reward_n"]) & (groups.count() > 1)

    def _passes(
        self, objective: Objective, rollouts: Rollouts, channel: str, n_updates: int
    ) -> list[dict[str, Tensor]]:
        """The old pass (several updates, or a stage that asks for it before the update) and the reference pass.

        One set for all updates, or one each where the policy draws masks or seeds per update: old, current and
        reference evaluation of an update share them.
        """
        needs, early = objective.needs(), objective.needs_before_update()
        old = early["old"] | (needs["old"] if n_updates > 1 else set())
        sampled: dict[str, Tensor] = {}
        if old == {"logp_nt"} and self.policy.sampler_exact and self.config.train.old_pass == "auto":
            sampled, old = {"old_logp_nt": rollouts.tables[channel]["sampler_logp_nt"]}, set()
        wanted = [(prefix, names) for prefix, names in (("old", old), ("ref", needs["ref"])) if names]
        found: list[dict[str, Tensor]] = []
        for at in range(n_updates if self.policy.noise_per_update and wanted else 1):
            extra: dict[str, Tensor] = dict(sampled)
            for prefix, names in wanted:
                reference = prefix == "ref"
                tables = update.evaluate(
                    self.policy, rollouts, names, channel=channel, update=at, reference=reference, team=self.team
                )
                extra |= {f"{prefix}_{k}": v for k, v in tables.items() if k in names}
            found.append(extra)
        return found

    def _one_update(
        self,
        objective: Objective,
        rollouts: Rollouts,
        table: Table,
        rows: Tensor,
        silent: Tensor,
        channel: str,
        at: int,
        log: measures.UpdateLog,
    ) -> None:
        """One optimiser step on some rows. zero_variance `mask`: silent rows are counted, not forwarded."""
        counts = None
        if self.zero_variance == "mask":
            full = table.rows(rows).updated({"part_n": torch.zeros(len(rows), dtype=torch.long)})
            counts = objective.coefficients(full)[1]
            rows = rows[~silent[rows]]
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
            watch=self._watched(),
            team=self.team,
            spare=self._spare,
        )
        optimiser = self.optimisers[channel]
        if not self.policy.sharded:
            self.team.add_gradients(optimiser.parameters)
        norm, stepped = optimiser.step(result.loss)
        for name, other in self.optimisers.items():
            if name != channel:  # whatever reached another channel's parameters must not wait for its turn
                other.drop_gradients()
        self._guard(stepped, result.loss, norm)
        if stepped:
            self.policy.stepped(channel)
            if channel in self.averages:
                self.averages[channel].update(optimiser.steps)
        log.add(result, norm, stepped, None if self.policy.noisy else sub)

    def _watched(self) -> frozenset[str]:
        """Entropy, every few steps of a channel: it shows a collapse, and costs a second look at the logits."""
        every = self.config.log.entropy_every
        return frozenset({"entropy_nt"}) if every and (self.turn - 1) % every == 0 else frozenset()

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


def _check_apart(parameters: Mapping[str, Sequence[Tensor]]) -> None:
    """Raises ValueError where a parameter belongs to two channels: each has an optimiser of its own."""
    owner: dict[int, str] = {}
    for channel, tensors in parameters.items():
        for tensor in tensors:
            if owner.setdefault(id(tensor), channel) != channel:
                raise ValueError(f"a parameter belongs to the channels {owner[id(tensor)]!r} and {channel!r}")
