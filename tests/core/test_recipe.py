"""Recipes: parsing, dotted overrides, phases, units; every shipped recipe builds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import image_gen.flow.stages  # noqa: F401  (registers the stages native to a family)
from image_gen.flow import windows
from image_gen.flow.config import Sampling
from mmrl import recipes
from mmrl.core.objective import Objective
from mmrl.core.recipe import Recipe, parse
from mmrl.core.registry import stages
from mmrl.errors import UserError

PROVIDES = frozenset({"logp_nt", "entropy_nt", "supervised_nt"})
PLAIN: dict[str, Any] = {"advantage": "grpo", "gate": "ppo-clip", "reduce": "token-mean"}


#: Recipes of image models: log-probs are means over elements.
FLOW = ("flow-grpo", "flow-grpo-fast", "mix-grpo", "dance-grpo", "grpo-guard", "vgpo")
STEPS = PROVIDES | {"kl_nt", "mean_gap_nt", "dt_nt", "sigma_nt", "scored_nt"}


def build(recipe: Recipe, unit: str = "decision", channel: str = "tokens") -> Objective:
    if recipe.slug in FLOW:
        return Objective(recipe, channel="steps", unit="element-mean", provides=STEPS, dense=True)
    return Objective(recipe, channel=channel, unit=unit, provides=PROVIDES)


def shipped(name: str, unit: str = "decision", **options: Any) -> Recipe:
    dotted = {k.replace("__", "."): v for k, v in options.items()}
    return parse(name, recipes.read(name), unit=unit, options=dotted)


@pytest.mark.parametrize("name", recipes.available())
def test_every_shipped_recipe_builds(name: str) -> None:
    recipe = shipped(name)
    objective = build(recipe)
    assert recipe.title and recipe.source
    assert objective.needs()[""] <= (STEPS if name in FLOW else PROVIDES)
    assert bool(recipe.sampling) == (name in FLOW)
    if recipe.group == "relative":
        assert objective.advantage.stage.relative
    if name != "sft":
        assert recipe.paper["arxiv"] and recipe.paper["title"]


def test_the_catalogue_of_this_version() -> None:
    assert set(recipes.available()) >= {
        *("grpo", "dr-grpo", "dapo", "rloo", "reinforce-pp", "gspo", "cispo", "visual-rft", "sft"),
        *FLOW,
    }


@pytest.mark.parametrize(
    ("name", "advantage", "clip", "kl", "sampling"),
    [
        ("flow-grpo", {"name": "batch-std", "ddof": 0, "eps": 1e-4}, 1e-4, 0.04, ("sde", 0.7, 10, 4.5, "all")),
        ("flow-grpo-fast", {"name": "grpo", "ddof": 0, "eps": 1e-4}, 1e-5, None, ("cps", 0.8, 10, 1.0, "random")),
        ("mix-grpo", {"name": "grpo-per-reward", "ddof": 1, "eps": 1e-8}, 1e-4, None, ("sde", 0.7, 25, 3.5, "sliding")),
        ("dance-grpo", {"name": "grpo", "ddof": 1, "eps": 1e-8}, 1e-4, None, ("dance", 0.3, 16, 3.5, "all")),
        ("grpo-guard", {"name": "grpo", "ddof": 0, "eps": 1e-4}, 2e-6, None, ("sde", 0.7, 10, 4.5, "all")),
        ("vgpo", None, 1e-4, 0.04, ("sde", 0.7, 10, 4.5, "all")),
    ],
)
def test_published_settings_of_image_models(
    name: str, advantage: dict[str, Any] | None, clip: float, kl: float | None, sampling: tuple[Any, ...]
) -> None:
    recipe = shipped(name, unit="element-mean")
    spec, objective = recipe.channel("steps"), build(recipe)
    assert spec.gate == {"name": "grpo-guard" if name == "grpo-guard" else "ppo-clip", "adv_clip": 5.0}
    assert spec.bounds == {"name": "constant", "low": clip, "high": clip}
    assert {p["name"]: p["coef"] for p in spec.penalties} == ({} if kl is None else {"kl": kl})
    assert objective.needs()["ref"] == set(), "the KL has a closed form"
    assert advantage is None or recipe.advantage == advantage
    assert (recipe.epochs, spec.reduce["name"]) == (1, "token-mean")
    own = recipe.sampling
    assert (own["rule"], own["noise"], own["steps"], own["guidance"], own["window"]["name"]) == sampling
    assert Sampling.model_validate(own).window.name == sampling[-1]
    window = windows.choose(steps=own["steps"], step=3, seed=0, **{"options": None, **own["window"]})
    expected = {"flow-grpo-fast": 3, "mix-grpo": 4, "dance-grpo": 9}.get(name, own["steps"] - 1)
    assert len(window.trained) == expected and own["steps"] - 1 not in window.stochastic
    assert bool(recipe.reconstruction) == (name == "vgpo")


def test_vgpo_has_its_published_number_of_absolute_steps() -> None:
    recipe = shipped("vgpo")
    defaults = {"gamma": 0.9, "k": 0.1, "n_abs": 5, "eps": 1e-4, "omega_level": "sample", "form": "outer"}
    assert recipe.advantage == {"name": "vgpo", **defaults}
    assert build(recipe).needs_dense and build(recipe).signal_without_variance


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "dapo", "cispo"])
def test_clip_defaults_follow_the_unit(name: str) -> None:
    """0.2 on a mean over elements would never act, so these recipes carry widths of their own for it."""
    token, element = shipped(name), shipped(name, unit="element-mean")
    assert token.channel("x").bounds["high"] >= 0.2 and element.channel("x").bounds["high"] <= 2e-4  # type: ignore[index]
    build(element, unit="element-mean")


@pytest.mark.parametrize(
    ("name", "advantage", "gate", "reduce", "low", "high", "penalties"),
    [
        ("grpo", {"name": "grpo", "ddof": 1, "eps": 1e-6}, "ppo-clip", "seq-mean-token-mean", 0.2, 0.2, {"kl": 0.04}),
        ("dr-grpo", {"name": "dr-grpo"}, "ppo-clip", "seq-mean-token-sum-norm", 0.2, 0.2, {}),
        ("dapo", {"name": "grpo", "ddof": 1, "eps": 1e-6}, "ppo-clip", "token-mean", 0.2, 0.28, {}),
        ("rloo", {"name": "rloo"}, "reinforce", "seq-mean-token-sum", None, None, {}),
        ("gspo", {"name": "grpo", "ddof": 1, "eps": 1e-6}, "gspo", "seq-mean-token-mean", 3e-4, 4e-4, {}),
        ("cispo", {"name": "grpo", "ddof": 1, "eps": 1e-6}, "cispo", "token-mean", None, 0.28, {}),
        (
            "visual-rft",
            {"name": "grpo", "ddof": 1, "eps": 1e-4},
            "ppo-clip",
            "seq-mean-token-mean",
            0.2,
            0.2,
            {"kl": 0.04},
        ),
    ],
)
def test_published_settings(
    name: str,
    advantage: dict[str, Any],
    gate: str,
    reduce: str,
    low: float | None,
    high: float | None,
    penalties: dict[str, float],
) -> None:
    recipe = shipped(name)
    spec = recipe.channel("tokens")
    assert recipe.advantage == advantage
    assert (spec.gate["name"], spec.reduce["name"]) == (gate, reduce)
    assert ((spec.bounds or {}).get("low"), (spec.bounds or {}).get("high")) == (low, high)
    assert {p["name"]: p["coef"] for p in spec.penalties} == penalties
    if name == "dapo":
        assert recipe.dynamic_sampling and [s["name"] for s in recipe.shape] == ["overlong"]


def test_dotted_overrides() -> None:
    recipe = shipped("grpo", penalties__kl__coef=0.01, gate__dual_clip=3.0, advantage__ddof=0, update__epochs=2)
    spec = recipe.channel("tokens")
    assert spec.penalties[0] == {"name": "kl", "estimator": "k3", "coef": 0.01}
    assert spec.gate == {"name": "ppo-clip", "dual_clip": 3.0}
    assert recipe.advantage["ddof"] == 0 and recipe.epochs == 2
    swapped = shipped("grpo", advantage="rloo", penalties=[])
    assert swapped.advantage == {"name": "rloo"} and swapped.channel("tokens").penalties == ()
    named = parse("x", {**PLAIN, "penalties": ["kl"]}, options={"gate.level": "row", "penalties.kl.coef": 2})
    assert named.channel("t").gate == {"name": "ppo-clip", "level": "row"}
    assert named.channel("t").penalties == ({"name": "kl", "coef": 2},)


def test_options_come_after_the_unit() -> None:
    recipe = shipped("grpo", unit="element-mean", bounds__high=5e-5)
    assert recipe.channel("steps").bounds == {"name": "constant", "low": 1e-4, "high": 5e-5}


def test_the_source_mapping_is_left_alone() -> None:
    data = recipes.read("grpo")
    before = copy.deepcopy(data)
    parse("grpo", data, unit="element-mean", options={"penalties.kl.coef": 0.0})
    assert data == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty.kl.coef": 0.1}, "nothing named 'penalty'; did you mean 'penalties'?"),
        ({"penalties.lk.coef": 0.1}, "nothing named 'lk'"),
        ({"updates": 3}, "unknown option 'updates'; did you mean 'update'?"),
        ({"update.epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'?"),
        ({"update.epochs.x": 3}, "option 'update.epochs.x' does not name a setting"),
        ({"update.minibatches": 0}, "at least 1, got 0"),
        ({"update.epochs": "two"}, "whole number of at least 1, got 'two'"),
        ({"group": "relativ"}, "'relativ' is not one of relative, none"),
        ({"advantage": 3}, "expected a stage name or a mapping with `name`, got 3"),
        ({"gate.dual_clp": 3.0}, "gate 'ppo-clip' has no option 'dual_clp'; did you mean 'dual_clip'?"),
        ({"penalties.kl.coef": "much"}, "coef must be a finite number, got 'much'"),
        ({"penalties.kl.estimator": "k4"}, "estimator must be k1, k2, k3 or k3+, got 'k4'"),
        ({"advantage.eps": "tiny"}, "advantage 'grpo' refuses"),
        ({"gate.level": "rows"}, "ratio level must be decision, row, row-sum or segment:<name>, got 'rows'"),
        ({"gate.dual_clip": 0.5}, "dual_clip must be above 1, got 0.5"),
        ({"gate.adv_clip": 0.0}, "adv_clip must be above 0, got 0.0"),
        (
            {"advantage": {"name": "grpo-per-reward", "singleton": "one"}},
            "singleton must be 'zero' or 'raw', got 'one'",
        ),
        (
            {"sampling.noise": 0.5},
            "option 'sampling.noise' names no stage; set sampling.noise in the run itself",
        ),
        ({"bounds.low": None}, "gate 'ppo-clip' always has this bound; give bounds.low a number"),
        ({"gate": "reinforce"}, "gate 'reinforce' has no clip, so `bounds` would be ignored"),
        ({"reduce.rows": "some"}, "rows must be 'nonempty' or 'all', got 'some'"),
    ],
)
def test_mistakes_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(parse("grpo", recipes.read("grpo"), options=options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and "recipe" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": "ppo-clip"}, "unknown key 'gates'; did you mean 'gate'?"),
        ({"advantage": None}, "expected a stage name"),
        (
            {"channels": {"tokens": {"gate": "ppo-clip", "reduce": "token-mean"}}},
            "`gate` beside `channels` would be ignored",
        ),
        ({"phases": [["tokens", 0]]}, "at least 1 step"),
        ({"phases": ["tokens"]}, "expected [channel, steps] pairs"),
        ({"penalties": [{"coef": 1.0}]}, "mapping with `name`"),
        ({"experience": "old"}, "'old' is not one of fresh, records"),
        ({"sampling": "sde"}, "recipe mine.sampling: expected a mapping of sampling settings, got 'sde'"),
    ],
)
def test_broken_recipes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse("mine", {**PLAIN, **change})
    assert message in str(caught.value) and str(caught.value).startswith("recipe mine")


@pytest.mark.parametrize("missing", ["advantage", "gate", "reduce"])
def test_what_every_recipe_needs(missing: str) -> None:
    with pytest.raises(UserError, match=f"recipe mine: needs `{missing}`"):
        parse("mine", {k: v for k, v in PLAIN.items() if k != missing})


def test_channels_and_phases() -> None:
    stages = {"gate": "ppo-clip", "reduce": "token-mean"}
    other = {"gate": "reinforce", "reduce": "seq-mean-token-sum", "optimiser": {"lr": 0.05}}
    data = {
        "advantage": "grpo",
        "channels": {"tokens": stages, "schedule": other},
        "phases": [["tokens", 2], ["schedule", 1]],
    }
    recipe = parse("two", data)
    assert [recipe.phase(s, "tokens") for s in range(7)] == ["tokens", "tokens", "schedule"] * 2 + ["tokens"]
    assert recipe.channel("schedule").optimiser == {"lr": 0.05}
    assert build(recipe, channel="schedule").terms_[0].stage.stage.name == "reinforce"
    with pytest.raises(UserError, match="no stages for channel 'step'"):
        recipe.channel("step")
    with pytest.raises(UserError, match="no stages for channel 'tocens'; did you mean 'tokens'"):
        parse("two", {**data, "phases": [["tocens", 1]]})
    with pytest.raises(UserError, match="channels.tokens: unknown key 'penaltys'; did you mean 'penalties'"):
        parse("two", {**data, "channels": {"tokens": {**stages, "penaltys": []}}})
    assert parse("one", PLAIN).phase(5, "tokens") == "tokens"


ENTRY = ("Idea", "Formula", "Stages", "Defaults", "Options", "Notes")


def test_every_recipe_and_stage_has_its_place_in_the_docs() -> None:
    """docs/methods.md: an entry a recipe, its parts in one order, naming its stages; every stage named."""
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in recipes.available():
        start = page.index(f"\n## {name}\n")
        entry = page[start : page.index("\n## ", start + 1)]
        places = [entry.index(f"**{part}.**") for part in ENTRY]
        assert places == sorted(places), name
        recipe = shipped(name)
        spec = recipe.channel("tokens")
        used = [recipe.advantage, spec.gate, spec.reduce, *spec.penalties, *recipe.shape]
        for stage in used:
            assert f"`{stage['name']}`" in entry, f"{name} does not name {stage['name']}"
        if "arxiv" in recipe.paper:
            assert recipe.paper["arxiv"] in entry
    for kind in ("shape", "advantage", "select", "weight", "gate", "penalty", "reduce"):
        for stage_name in stages(kind):
            assert f"`{stage_name}`" in page or f"name: {stage_name}" in page or f"[{stage_name}]" in page, stage_name
