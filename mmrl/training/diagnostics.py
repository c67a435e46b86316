"""Signs of a run going wrong, each with advice. Thresholds are constants here and documented in docs/metrics.md."""

from __future__ import annotations

from typing import Any

DISTINCT_LOW = 0.1  # share of different outputs in a step
TRUNCATED_HIGH = 0.5  # share of samples cut at the length limit
FLAT_HIGH = 0.9  # share of groups without reward variance
ENTROPY_LOW = 0.01  # nats per decision
LENGTH_GROWTH = 3.0  # mean length against the first steps


class Diagnostics:
    """Looks at each step's metrics; returns new warnings, each kind once until it clears."""

    def __init__(self) -> None:
        self.active: set[str] = set()
        self.first_length: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"active": sorted(self.active), "first_length": self.first_length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.active = set(state["active"])
        self.first_length = state["first_length"]

    def look(self, m: dict[str, float], ratio_tolerance: float) -> list[str]:
        found: dict[str, str] = {}
        if m.get("distinct", 1.0) < DISTINCT_LOW:
            found["distinct"] = "nearly all samples are equal: raise the temperature or lower the learning rate"
        if m.get("truncated", 0.0) > TRUNCATED_HIGH:
            found["truncated"] = "most samples are cut at the length limit: raise sampling.max_new_tokens"
        if m.get("flat_groups", 0.0) > FLAT_HIGH:
            found["flat"] = (
                "hardly any group has different rewards: prompts are too easy or too hard, or the reward is constant"
            )
        if "entropy" in m and m["entropy"] < ENTROPY_LOW:
            found["entropy"] = "the policy is nearly deterministic: lower the learning rate or add an entropy bonus"
        if m.get("sampler_gap", 0.0) > ratio_tolerance:
            gap = 1 + m["sampler_gap"]
            found["gap"] = (
                f"the likelihoods of the update differ from the sampler's by a ratio of up to {gap:.4f}: likely half "
                "precision, a kernel that depends on the batch size, dropout, or a sampling option unknown to scoring"
            )
        if "length" in m:
            self.first_length = m["length"] if self.first_length is None else self.first_length
            if m["length"] > LENGTH_GROWTH * max(1.0, self.first_length):
                found["length"] = (
                    f"outputs are more than {LENGTH_GROWTH:g} times as long as at the start: check for length hacking"
                )
        new = [text for kind, text in found.items() if kind not in self.active]
        self.active = set(found)
        return new
