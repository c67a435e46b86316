"""From a plan to the scored rows of a step: sample, score, leave groups out, ask for others in their place."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmrl.config import Config
from mmrl.core.recipe import Recipe
from mmrl.core.streams import Streams
from mmrl.errors import RecordError, UserError
from mmrl.selection.base import Seen
from mmrl.selection.request import Request
from mmrl.training.batch import Scored, shuffle_inside_groups
from mmrl.training.exchange import gather_scored
from mmrl.training.rollouts import Rollouts
from mmrl.training.scoring import Scoring, Told, joined
from mmrl.training.state import Resumable
from mmrl.training.team import Team

Values = dict[str, Any]


class Experience(Resumable):
    """The half of a step before the update."""

    config: Config
    recipe: Recipe
    team: Team
    tell: Callable[[str], None]
    scoring: Scoring
    zero_variance: str
    _spare: Rollouts | None = None  # a row of this rank, to keep step with when an update leaves it without

    def _experience(self, streams: Streams) -> tuple[Scored, Values, Values]:
        """Rollouts with rewards, seconds, counts. Groups that the selector leaves out, and with `resample` those
        without variance, are replaced a bounded number of times; no row at all may be left."""
        timing: Values = {"seconds/rollout": 0.0, "seconds/reward": 0.0}
        resample = self.zero_variance == "resample"
        most = max(self.config.train.resample_rounds if resample else 0, self.selector.refill_rounds)
        kept: list[Scored] = []
        filtered, flat, rounds, first_key = 0, 0, 0, 0
        requests = self.selector.plan(streams.step)
        while True:
            scored, passes = self._sample(requests, streams, timing, first_key)
            first_key += len(requests)
            useful = passes & ~scored.flat_n() if resample else passes
            left, alive = _groups(scored, passes), _groups(scored, useful)
            filtered, flat = filtered + len(requests) - left, flat + left - alive
            if bool(useful.any()):
                kept.append(scored if bool(useful.all()) else scored.select(useful.nonzero()[:, 0]))
            if alive == len(requests) or rounds == most:
                break
            rounds += 1
            requests = self.selector.refill(len(requests) - alive)
        self._look_ahead(streams.step + 1)
        counts: Values = {"resampled_groups": flat} if resample else {}
        counts |= {"filtered_groups": filtered} if self.selector.filters else {}
        counts |= {"resample_rounds": rounds} if counts else {}
        return Scored.concat(kept) if kept else scored.select(torch.arange(0)), timing, counts

    def _look_ahead(self, step: int) -> None:
        """Tell the policy what this rank will probably be asked at `step`: it may read that beside the update."""
        if step < self.config.train.steps and (coming := self.selector.coming(self.config.train.prompts)):
            cut = self.scoring.cut(coming, self.team.size)
            self.policy.look_ahead([request for some in cut for _, request in self.team.share(some)])

    def _stop_if_empty(self, updates: Values) -> None:
        """Steps from which no group went on train nothing: several in a row end the run."""
        choosy = self.zero_variance == "resample" or self.selector.filters
        empty = choosy and updates["updates"] == 0 and updates.get("lr") is None
        self.counters.empty_in_a_row = self.counters.empty_in_a_row + 1 if empty else 0
        if self.counters.empty_in_a_row < self.config.train.max_bad_steps:
            return
        steps = f"in {self.counters.empty_in_a_row} steps, refills included"
        if self.zero_variance == "resample":
            raise UserError(
                f"train: no group had different rewards {steps}; the prompts are too easy or too hard, or the reward "
                "is constant (train.zero_variance: keep trains on)"
            )
        raise UserError(
            f"train: no group passed selection {self.config.selection.name!r} {steps}; the prompts are too easy or too "
            "hard, or its options ask too much"
        )

    def _sample(
        self, requests: list[Request], streams: Streams, timing: Values, first_key: int
    ) -> tuple[Scored, Tensor]:
        """Scored rows of the requests, and which of them the selector lets go on; bool [N]."""
        started = time.perf_counter()
        if first_key == 0 and len(requests) < self.team.size:
            raise UserError(
                f"selection: {len(requests)} prompts planned for a step of {self.team.size} processes; each needs one"
            )
        asked, parts = [], []
        for some in self.scoring.cut(requests, self.team.size):
            some, part = self._usable(some, streams)
            asked.append(some)
            parts.append(None if part is None else self.scoring.begin(part))
        timing["seconds/rollout"] += time.perf_counter() - started
        started = time.perf_counter()
        requests = [request for some in asked for request in some]
        scored = joined([self._score(some, part) for some, part in zip(asked, parts, strict=True)])
        scored.success = self.scorer.success
        if self.team.size > 1 and len(scored.rollouts.mine):
            self._spare = scored.rollouts.select(scored.rollouts.mine[:1])
        prompt_n = scored.rollouts.keys["prompt"]
        scored.rollouts.keys["prompt"] = prompt_n + first_key
        if self.config.train.control == "shuffled":
            scored = shuffle_inside_groups(scored, streams)
        timing["seconds/reward"] += time.perf_counter() - started
        self.selector.observe(requests, scored.reward_n, prompt_n)
        components = dict(zip(scored.names, scored.reward_nk.unbind(1), strict=True))
        return scored, self.selector.keep_groups(
            requests, Seen(scored.reward_n, prompt_n, components, scored.correct_n, scored.rollouts.outputs)
        )

    def _usable(self, requests: list[Request], streams: Streams) -> tuple[list[Request], Rollouts | None]:
        """Rollouts of this rank's share of the requests. With data.on_error: skip, further ones take the place of
        records that cannot be used (any more); each is told and counted. Raises UserError when no record is left."""
        for _ in range(len(self.selector.records) + 1):
            own = [request for _, request in self.team.share(requests)]
            try:
                with self.policy.whole():
                    return requests, self.team.together(partial(self._ask, own, streams))
            except RecordError as error:
                left = [r for r in requests if r.record.id != error.record_id]
                if self.config.data.on_error != "skip" or len(left) == len(requests):
                    raise
                self.counters.skipped_records += 1
                self.tell(f"record skipped: {error}")
                requests = left + self.selector.refill(len(requests) - len(left))
        raise UserError("data.train: none of the records can be used any more; run mmrl check-data on the file")

    def _ask(self, requests: list[Request], streams: Streams) -> Rollouts | None:
        if not requests:
            return None
        if self.recipe.experience != "records":
            return self.policy.rollout(requests, streams)
        rollouts = self.policy.demonstrations([r.record for r in requests], streams)
        for table in rollouts.tables.values():
            table.pop("sampler_logp_nt", None)  # nobody sampled these rows
        return rollouts

    def _score(self, requests: list[Request], told: Callable[[], Told] | None) -> Scored:
        """Rewards of this rank's rows, then everybody's rows with theirs."""
        own, failures = self.team.together(lambda: told() if told is not None else (None, []))
        everywhere = self.team.gather(failures)
        for failure in [f for found in everywhere for f in found][:3]:
            self.tell(f"reward skipped: {failure}")
        total = sum(len(found) for found in everywhere)
        self.counters.reward_failures += total
        self.scorer.failed_rows += total - len(failures)  # it counted its own
        return gather_scored(self.team, own, self.team.share(requests), requests)


def _groups(scored: Scored, rows: Tensor) -> int:
    """How many groups have some of these rows (bool [N])."""
    return int(torch.unique(scored.rollouts.keys["prompt"][rows]).numel())
