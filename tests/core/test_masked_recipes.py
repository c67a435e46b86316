"""Recipes of masked image models: their settings, their variants, what they ask of a policy."""

from __future__ import annotations

from typing import Any

import pytest

from image_gen.masked.config import Sampling
from mmrl import recipes
from mmrl.core.objective import Objective
from mmrl.core.recipe import Recipe, parse
from mmrl.errors import UserError

TOKENS, SCHEDULE = frozenset({"logp_nt", "entropy_nt"}), frozenset({"logp_nt", "entropy_nt", "kl_nt"})
ALL = ("co-grpo", "mask-grpo", "schedule-grpo")


def shipped(name: str, **options: Any) -> Recipe:
    return parse(
        name, recipes.read(name), unit="decision", options={k.replace("__", "."): v for k, v in options.items()}
    )


def built(recipe: Recipe, channel: str, segments: frozenset[str] | None = frozenset({"step"})) -> Objective:
    provides = TOKENS if channel == "tokens" else SCHEDULE
    keys = frozenset({"prompt"})
    return Objective(recipe, channel=channel, unit="decision", provides=provides, keys=keys, segments=segments)


def test_settings() -> None:
    """One clip of 0.2 and one advantage in all; each channel has its own mean; what is open is said to be so."""
    for name in ALL:
        recipe = shipped(name)
        assert recipe.advantage == {"name": "grpo", "ddof": 0, "eps": 1e-4}
        assert (recipe.epochs, recipe.minibatches, recipe.group) == (1, 1, "relative")
        assert recipe.reconstruction and recipe.paper["arxiv"] == "2512.22288"
        assert list(recipe.channels) == [channel for channel, _ in recipe.phases]
        for spec in recipe.channels.values():
            assert spec.bounds == {"name": "constant", "low": 0.2, "high": 0.2}
            assert spec.gate == {"name": "ppo-clip", "level": "decision"}
            assert all(p["coef"] == 0 for p in spec.penalties)
    co = shipped("co-grpo")
    assert co.phases == (("tokens", 1), ("schedule", 1)) and co.source.count("2409.00342") == 1
    assert co.channel("tokens").reduce == {"name": "seq-mean-segment-mean", "segment": "step", "counted": True}
    assert co.channel("schedule").reduce == {"name": "seq-mean-token-mean"}
    assert co.channel("tokens").optimiser == {} and co.channel("schedule").optimiser == {"lr": 1e-3}
    assert [Sampling.model_validate(shipped(n).sampling).explore for n in ALL] == [True, False, True]


def test_the_halves_are_those_of_co_grpo() -> None:
    co = shipped("co-grpo")
    assert shipped("mask-grpo").channel("tokens") == co.channel("tokens")
    assert shipped("schedule-grpo").channel("schedule") == co.channel("schedule")
    with pytest.raises(UserError, match="no stages for channel 'schedule'"):
        shipped("mask-grpo").channel("schedule")


@pytest.mark.parametrize(("level", "scope"), [("decision", "decision"), ("segment:step", "segment")])
def test_plain_recipes_need_no_further_pass(level: str, scope: str) -> None:
    co = shipped("co-grpo", channels__tokens__gate__level=level)
    tokens, schedule = built(co, "tokens"), built(co, "schedule")
    assert tokens.needs() == {"": {"logp_nt"}, "old": {"logp_nt"}, "ref": set(), "sampler": set()}
    assert schedule.needs()[""] == {"logp_nt"} and schedule.scope == "decision"
    assert tokens.scope == scope and tokens.segments == (frozenset({"step"}) if scope == "segment" else frozenset())


def test_the_literal_product() -> None:
    level = {"channels__tokens__gate__level": "segment-sum:step", "channels__tokens__bounds__low": 1e-3}
    objective = built(shipped("co-grpo", **level, channels__tokens__bounds__high=1e-3), "tokens")
    assert (objective.scope, objective.segments, objective.narrowest_clip()) == ("segment", {"step"}, 1e-3)
    with pytest.raises(UserError, match="level: rollouts have no segment 'stop'; did you mean 'step'"):
        built(shipped("mask-grpo", channels__tokens__gate__level="segment-sum:stop"), "tokens")
    with pytest.raises(UserError, match="segment: rollouts have no segment 'turn'"):
        built(shipped("mask-grpo", channels__tokens__reduce__segment="turn"), "tokens")
    with pytest.raises(UserError, match="does not fit log-probabilities per row"):
        Objective(shipped("mask-grpo"), channel="tokens", unit="row", provides=TOKENS)


def test_penalties_are_a_coefficient_away() -> None:
    kl = {"channels__tokens__penalties__kl__coef": 0.01, "channels__schedule__penalties__kl__coef": 0.1}
    co = shipped("co-grpo", **kl, channels__schedule__penalties__entropy__coef=0.01)
    tokens, schedule = built(co, "tokens"), built(co, "schedule")
    assert tokens.needs()["ref"] == {"logp_nt"} and [t.name for t in tokens.terms_] == ["policy", "kl"]
    assert schedule.needs()["ref"] == set() and schedule.needs()[""] == SCHEDULE
    assert [(t.name, t.coef) for t in schedule.terms_] == [("policy", 1.0), ("kl", 0.1), ("entropy", 0.01)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inside": "max"}, "inside and over must be 'mean' or 'sum'"),
        ({"over": "sum", "counted": True}, "counted changes a mean over segments only"),
        ({"rows": "some"}, "rows must be 'nonempty' or 'all'"),
        ({"empty": "count"}, "no option 'empty'"),
    ],
)
def test_bad_options_of_the_mean_over_segments(options: dict[str, Any], words: str) -> None:
    dotted = {f"channels__tokens__reduce__{k}": v for k, v in options.items()}
    with pytest.raises(UserError, match=words):
        built(shipped("co-grpo", **dotted), "tokens")
