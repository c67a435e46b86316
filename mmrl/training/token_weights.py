"""Token weights of sampled answers, for people: what a stage that compares the members of a group says of each token.

Axes: N rollouts, T decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmrl.core.objective import Objective
from mmrl.core.reducers import REDUCERS
from mmrl.core.registry import Bound
from mmrl.core.streams import Streams
from mmrl.core.table import Table
from mmrl.data.records import Record
from mmrl.training import update
from mmrl.training.policy import Policy
from mmrl.training.rollouts import Request, Rollouts

RECORDS = 16  # held-out records that get a group at each evaluation


@dataclass(frozen=True)
class Weighing:
    """A weight stage that needs nothing but what logit reducers fill (`tw`), its channel, and the size of a group."""

    stage: Bound
    channel: str
    group: int

    @property
    def needs(self) -> set[str]:
        return set(self.stage.needs()) - {"mask_nt"}


def weighing(channel: str, objective: Objective, group: int) -> Weighing | None:
    """The first such stage of the objective; None without one, or where a group has one member."""
    for stage in objective.weight:
        found = Weighing(stage, channel, group)
        by_prompt = stage.options.get("key", "prompt") == "prompt"
        if stage.scope == "group" and by_prompt and found.needs and found.needs <= REDUCERS.keys() and group > 1:
            return found
    return None


def groups_of(policy: Policy, records: Sequence[Record], how: Weighing, *, seed: int) -> Rollouts:
    """The other members of each record's group: group - 1 sampled answers, from the same noise at every step."""
    requests = [Request(record=r, n=how.group - 1, first_sample=1) for r in records[:RECORDS]]
    return policy.rollout(requests, Streams(seed, 0, "gallery-groups"))


def token_weights(policy: Policy, shown: Rollouts, others: Rollouts, how: Weighing) -> list[list[float]]:
    """The weight of each decision of the rows of `shown`, one a prompt, within the group that `others` (same prompt
    keys) complete. Rows without others get none: []. Detached; the policy is left as it was."""
    known = set(others.keys["prompt"].tolist())
    rows = [i for i, prompt in enumerate(shown.keys["prompt"].tolist()) if prompt in known]
    whole = Rollouts.concat([shown.select(rows), others])
    policy.prepare(whole, 1)
    found = update.evaluate(policy, whole, how.needs, channel=how.channel)
    policy.release(whole)
    mask_nt = whole.tables[how.channel]["mask_nt"].bool()
    weight_nt = how.stage(Table({"mask_nt": mask_nt, **found}, keys=whole.keys))
    out: list[list[float]] = [[] for _ in range(len(shown))]
    for at, i in enumerate(rows):
        out[i] = [float(w) for w in weight_nt[at][mask_nt[at]]]
    return out
