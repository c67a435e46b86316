"""What a user might bring: a selector with memory, and rewards that fail on one record."""

from __future__ import annotations

import torch

from mmrl.rewards import reward
from mmrl.selection.base import selector
from mmrl.selection.uniform import Uniform


@selector("remembering")
class Remembering(Uniform):
    """Leaves out the group of the lowest mean reward and every row of advantage 0; remembers what it saw."""

    def __init__(self, records, *, prompts, group, seed, shuffle=True):
        super().__init__(records, prompts=prompts, group=group, seed=seed, shuffle=shuffle)
        self.seen, self.scores = {}, []

    def observe(self, requests, reward_n, prompt_n):
        for number, request in enumerate(requests):
            self.seen.setdefault(request.record.id, []).append(float(reward_n[prompt_n == number].mean()))

    def keep_groups(self, requests, seen):
        means = torch.stack([seen.reward_n[seen.prompt_n == number].mean() for number in range(len(requests))])
        return seen.prompt_n != int(means.argmin())

    def keep_rows(self, table):
        return table["adv_nt"].abs().sum(1) > 0

    def after_update(self, score):
        self.scores.append(round(float(score().sum()), 6))

    def state_dict(self):
        return {**super().state_dict(), "seen": self.seen, "scores": self.scores}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.seen, self.scores = state["seen"], state["scores"]


@reward("fails-on-r3", tasks=("toy",))
def fails_on_r3(outputs, records, info):
    if any(r.id == "r3" for r in records):
        raise RuntimeError("no such thing")
    return [o.count("0") / max(1, len(o)) for o in outputs]


@reward("fails-on-r4", tasks=("toy",))
def fails_on_r4(outputs, records, info):
    """r3 and r4 fall on different ranks in the first step."""
    if any(r.id == "r4" for r in records):
        raise RuntimeError("no such thing")
    return [o.count("0") / max(1, len(o)) for o in outputs]


@reward("nothing-for-r3", tasks=("toy",))
def nothing_for_r3(outputs, records, info):
    return [None if r.id == "r3" else o.count("0") / max(1, len(o)) for o, r in zip(outputs, records, strict=True)]


@reward("ones", tasks=("toy",))
def ones(outputs, records, info):
    return [o.count("1") / max(1, len(o)) for o in outputs]
