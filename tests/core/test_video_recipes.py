"""The recipes of video methods: their numbers, what they ask of a policy, and units."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmrl import recipes
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.registry import Bound, bind
from mmrl.core.table import Table
from mmrl.errors import UserError
from mmrl.selection.base import find
from mmrl.selection.difficulty import Difficulty

PROVIDES = frozenset({"logp_nt", "entropy_nt", "supervised_nt"})


def build(name: str, unit: str = "decision", **more: Any) -> Objective:
    options = {k.replace("__", "."): v for k, v in more.pop("options", {}).items()}
    recipe = parse(name, recipes.read(name), unit=unit, options=options)
    return Objective(recipe, channel="tokens", unit=unit, provides=PROVIDES, **more)


@pytest.mark.parametrize("name", ["tw-grpo", "token-mean-soft", "grpo-soft"])
def test_what_the_published_settings_share(name: str) -> None:
    objective = build(name)
    assert objective.advantage.options == {"ddof": 1, "eps": 1e-4}
    assert objective.bounds is not None and objective.bounds.options == {"low": 0.2, "high": 0.28}
    assert [t.name for t in objective.terms_] == ["policy"], "a coefficient of 0 costs nothing"
    assert not any(objective.needs()[p] for p in ("ref", "sampler"))
    assert objective.terms_[0].reduce.stage.name == ("seq-mean-token-mean" if name == "grpo-soft" else "token-mean")
    assert [(w.stage.name, w.options["alpha"]) for w in objective.weight] == (
        [("tw", 1.7)] if name == "tw-grpo" else []
    )
    with_kl = build(name, options={"penalties__kl__coef": 0.04})
    assert with_kl.needs()["ref"] == {"logp_nt"}


@pytest.mark.parametrize(
    ("form", "channel"),
    [
        ("official", "divergence_nt"),
        ("active", "divergence_active_nt"),
        ("calibrated", "js_nt"),
        ("calibrated-active", "js_active_nt"),
    ],
)
def test_each_form_asks_for_its_own_divergence(form: str, channel: str) -> None:
    objective = build("tw-grpo", options={"weight__tw__form": form})
    assert objective.needs()[""] == {"logp_nt", channel}
    assert objective.scope == "group" == objective.chunk_scope
    assert build("token-mean-soft").scope == "decision" == build("reg-grpo").chunk_scope


def test_wrong_forms_and_weights_are_refused() -> None:
    for option, value, message in (
        ("form", "offical", "form must be one of official, active, calibrated, calibrated-active, got 'offical'"),
        ("alpha", 0.7, "alpha is the largest weight, at least 1"),
        ("alpha", float("nan"), "alpha is the largest weight"),
    ):
        with pytest.raises(UserError, match=message):
            build("tw-grpo", options={f"weight__tw__{option}": value})
    with pytest.raises(UserError, match="needs divergence_nt, which this policy does not provide"):
        build("tw-grpo", reduces=False)


def test_a_need_may_depend_on_the_value_of_an_option() -> None:
    bound = bind("weight", {"name": "tw", "form": "calibrated"})
    assert "js_nt" in bound.needs() and "divergence_nt" not in bound.needs()
    assert "divergence_nt" in bind("weight", "tw").needs()
    assert "old_logp_nt" in Bound(bind("penalty", "kl").stage, {"off_policy": True}).needs()
    assert "old_logp_nt" not in bind("penalty", "kl").needs()


@pytest.mark.parametrize("name", ["reg-grpo", "deepvideo-r1"])
def test_the_regression_has_several_updates_a_rollout(name: str) -> None:
    objective = build(name)
    assert objective.recipe.epochs * objective.recipe.minibatches > 1
    assert objective.advantage.options == {"ddof": 0, "eps": 1e-8} and objective.scope == "group"
    assert [(t.name, t.coef) for t in objective.terms_] == [("policy", 1.0), ("kl", 0.1)]
    assert objective.needs()["old"] == {"logp_nt"} == objective.needs()["ref"]
    assert objective.recipe.reconstruction
    rows = build(name, "row", options={"penalties__kl__level": "row-sum"})
    assert rows.terms_[0].stage.stage.name == "reg-grpo"
    with pytest.raises(UserError, match="'reg-grpo'.*element-mean|element-mean.*reg-grpo"):
        build(name, "element-mean", options={"penalties__kl__coef": 0.0})
    with pytest.raises(UserError, match="s_min must be above 0, got 0"):
        build(name, options={"gate__s_min": 0})
    with pytest.raises(UserError, match="has no clip, so `bounds` would be ignored"):
        build(name, options={"bounds": {"name": "constant"}})


def test_the_selector_of_the_recipe() -> None:
    own = recipes.read("deepvideo-r1")["selection"]
    assert find(own["name"], own["options"]) is Difficulty
    Difficulty.check(own["options"], columns=["soft"], correct=False)
    assert own["options"]["window"] == 100


def test_weights_of_tw_grpo_act_on_its_kl_as_well() -> None:
    """loss = sum m w (surrogate + beta k3) / sum m, by hand: no advantage, weights 1 and 1.7, log-ratios 0.5 and -1."""
    objective = build("tw-grpo", options={"penalties__kl__coef": 1.0})
    logp = torch.tensor([[-1.0, -2.0], [-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    table = Table(
        {
            "logp_nt": logp,
            "old_logp_nt": logp.detach(),
            "ref_logp_nt": logp.detach() + torch.tensor([0.5, -1.0], dtype=torch.float64),
            "divergence_nt": torch.tensor([[0.0, 0.5], [0.0, 0.5]], dtype=torch.float64),
            "mask_nt": torch.ones(2, 2, dtype=torch.bool),
            "adv_nt": torch.zeros(2, 2, dtype=torch.float64),
        },
        {"prompt": torch.zeros(2, dtype=torch.long)},
    )
    table = objective.widths_and_weights(table)
    loss = objective.terms(table, *objective.coefficients(table)).loss()
    k3 = [math.exp(0.5) - 0.5 - 1, math.exp(-1.0) + 1.0 - 1]
    assert float(loss.detach()) == pytest.approx((k3[0] + 1.7 * k3[1]) / 2, rel=1e-7)  # 1e-8 stands in the min-max
    with pytest.raises(UserError, match="weighted must be true or false, and true needs a `weight`"):
        build("token-mean-soft", options={"penalties__kl__weighted": True, "penalties__kl__coef": 1.0})
