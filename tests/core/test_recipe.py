"""Recipes: parsing, dotted overrides, phases, units; every shipped recipe builds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import image_gen.flow.stages  # noqa: F401  (registers the stages native to a family)
from dlm.config import Sampling as DlmSampling
from dlm.likelihood import registry
from image_gen.flow import windows
from image_gen.flow.config import Sampling
from mmrl import recipes
from mmrl.core.objective import Objective
from mmrl.core.recipe import Recipe, parse
from mmrl.core.reducers import REDUCERS
from mmrl.core.registry import stages
from mmrl.errors import UserError
from mmrl.selection.base import find as find_selector
from mmrl.selection.filtered import Filtered

PROVIDES = frozenset({"logp_nt", "entropy_nt", "supervised_nt"})
PLAIN: dict[str, Any] = {"advantage": "grpo", "gate": "ppo-clip", "reduce": "token-mean"}


#: Recipes of image models: log-probs are means over elements.
FLOW = ("flow-grpo", "flow-grpo-fast", "mix-grpo", "dance-grpo", "grpo-guard", "vgpo")
#: Recipes of diffusion language models, with their likelihood and what one of its values stands for.
DLM = {
    "gdpo-diffusion": ("sdmc", "row"),
    "diffu-grpo": ("one_step", "decision"),
    "tracerl": ("trajectory", "decision"),
    "lightningrl": ("trajectory", "decision"),
}
#: Recipes of masked image models, with the channels they train.
MASKED = {"co-grpo": ("tokens", "schedule"), "mask-grpo": ("tokens",), "schedule-grpo": ("schedule",)}
STEPS = PROVIDES | {"kl_nt", "mean_gap_nt", "dt_nt", "sigma_nt", "scored_nt"}


def main_channel(recipe: Recipe) -> str:
    return recipe.phases[0][0] if recipe.phases else "tokens"


def build(recipe: Recipe, unit: str = "decision", channel: str = "") -> Objective:
    channel = channel or main_channel(recipe)
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
    assert objective.needs()[""] <= (STEPS if name in FLOW else PROVIDES) | REDUCERS.keys()
    assert bool(objective.needs()[""] & REDUCERS.keys()) == (name == "tw-grpo")
    assert bool(recipe.sampling) == (name in FLOW or name in DLM or name in MASKED)
    assert bool(recipe.selection) == (name in ("tracerl", "lightningrl", "deepvideo-r1"))
    if recipe.group == "relative":
        assert objective.advantage.stage.relative
    if name != "sft":
        assert recipe.paper["arxiv"] and recipe.paper["title"]


def test_the_catalogue_of_this_version() -> None:
    assert set(recipes.available()) >= {
        *("grpo", "dr-grpo", "dapo", "rloo", "reinforce-pp", "gspo", "cispo", "visual-rft", "sft"),
        *FLOW,
        *DLM,
        *MASKED,
        "gdpo-decoupled",
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


@pytest.mark.parametrize("name", DLM)
def test_recipes_of_diffusion_language_models(name: str) -> None:
    """Their sampling is the family's, with an estimator whose unit the stages accept; in no other do they build."""
    estimator, unit = DLM[name]
    recipe = shipped(name, unit=unit)
    own = DlmSampling.model_validate(recipe.sampling).likelihood
    assert own.name == estimator and registry.unit_of(own.name) == unit
    registry.make(own.name, own.options)
    objective = build(recipe, unit=unit)
    assert objective.needs_correct == ("nll" if name == "lightningrl" else None)
    assert bool(objective.needs()["ref"]) == (name in ("diffu-grpo", "lightningrl"))
    if unit == "decision":
        with pytest.raises(UserError, match="only the row's sum|no likelihood of their own"):
            build(recipe, unit="row")
    if recipe.selection:
        assert find_selector(recipe.selection["name"], recipe.selection["options"]) is Filtered


def test_published_settings_of_diffusion_language_models() -> None:
    gdpo, d1, trace, light = (shipped(name) for name in DLM)
    tokens = [r.channel("tokens") for r in (gdpo, d1, trace, light)]
    assert [r.epochs for r in (gdpo, d1, trace, light)] == [12, 12, 1, 1] and light.minibatches == 8
    assert [(t.bounds or {})["high"] for t in tokens] == [0.5, 0.5, 0.2, 0.2]
    assert [(t.bounds or {})["low"] for t in tokens] == [0.5, 0.5, 0.2, 0.2]
    assert [r.advantage["name"] for r in (gdpo, d1, trace, light)] == ["dr-grpo", "dr-grpo", "grpo", "decoupled"]
    assert [t.reduce["name"] for t in tokens] == [*["seq-mean-token-mean", "token-mean"], *["seq-mean-token-mean"] * 2]
    assert tokens[0].gate == {"name": "gspo", "level": "row", "cap_low": -10.0, "cap_high": 10.0}
    assert tokens[3].gate == {"name": "ppo-clip", "cap_low": -10.0, "cap_high": 10.0}
    coefficients = [{p["name"]: (p["coef"], p.get("reduce")) for p in t.penalties} for t in tokens]
    assert coefficients[:3] == [{}, {"kl": (0.04, None)}, {"kl-old": (0.01, None)}]
    assert coefficients[3] == {"nll": (0.1, "token-mean-correct"), "kl": (0.01, "token-mean")}
    assert trace.advantage["ddof"] == light.advantage["ddof"] == 0 and light.advantage["batch_ddof"] == 1
    assert trace.selection["options"]["share_correct"] == [0.2, 0.8]
    assert light.selection["options"] == {"spread": {"tpf": 0.01}, "need_correct": True, "refill_rounds": 2}
    assert light.sampling["rule"] == "threshold" and light.sampling["threshold"] == 0.9
    assert gdpo.sampling["likelihood"]["options"] == {"rule": "gauss-3", "draws": 1, "weighting": "1/t"}
    assert d1.sampling["likelihood"]["options"] == {"p_mask_prompt": 0.15}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce": "token-mean"}, "only the row's sum has a meaning"),
        ({"gate": "ppo-clip"}, "no likelihood of their own"),
        ({"gate.level": "segment:block"}, "with level segment:block does not fit log-probabilities per row"),
        ({"penalties": [{"name": "kl", "coef": 0.1}]}, "set level: row"),
        ({"penalties": [{"name": "kl-old", "coef": 0.1, "level": "decision"}]}, "set level: row"),
        ({"penalties": [{"name": "kl", "coef": 0.1, "level": "rows"}]}, "set level: row"),
        ({"gate.loss_norm": "lenght"}, "loss_norm must be 'none' or 'length'"),
        ({"gate.cap_low": 1.0}, "clamped to an interval around 0"),
    ],
)
def test_single_terms_of_a_bound_are_never_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(parse("gdpo-diffusion", recipes.read("gdpo-diffusion"), options=options), unit="row")
    assert message in str(caught.value)


def test_whole_row_penalties_of_a_bound_are_accepted() -> None:
    for penalty in ({"name": "kl", "level": "row", "estimator": "k2"}, {"name": "kl", "level": "row-sum"}):
        read = recipes.read("gdpo-diffusion")
        objective = build(parse("x", read, options={"penalties": [{**penalty, "coef": 0.1}]}), unit="row")
        assert objective.needs()["ref"] == {"logp_nt"} and objective.scope == "row"


def test_the_two_gdpos_are_told_apart() -> None:
    with pytest.raises(UserError, match="gdpo-diffusion .*gdpo-decoupled") as caught:
        recipes.read("gdpo")
    assert "not in this version" not in str(caught.value)
    decoupled = shipped("gdpo-decoupled")
    assert decoupled.advantage == {
        "name": "decoupled",
        "ddof": 1,
        "eps": 1e-4,
        "batch": "batch",
        "batch_ddof": 1,
        "batch_eps": 1e-4,
        "batch_floor": 0.0,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantage.modes": ["z-score", "minmax"]}, "min-max"),
        ({"advantage.modes": "z-score"}, "a list"),
        ({"advantage.batch": "tokens2"}, "did you mean 'tokens'"),
        ({"advantage.bach": "none"}, "did you mean 'batch'"),
    ],
)
def test_mistakes_in_the_decoupled_advantage(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(parse("x", recipes.read("gdpo-decoupled"), options=options))
    assert message in str(caught.value)


def test_modes_for_several_components_pass_the_dry_call() -> None:
    build(parse("x", recipes.read("lightningrl"), options={"advantage.modes": ["signs", "min-max", "raw"]}))


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
        (
            {"gate.level": "rows"},
            "ratio level must be decision, row, row-sum, segment:<name> or segment-sum:<name>, got 'rows'",
        ),
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
        ({"selection": "filtered"}, "recipe mine.selection: expected a mapping of selection settings, got 'filtered'"),
        ({"selection": {"nam": "filtered"}}, "recipe mine.selection: unknown key 'nam'; did you mean 'name'?"),
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
        specs = [recipe.channel(c) for c in recipe.channels]
        used = [recipe.advantage, *recipe.shape] + [s for c in specs for s in (c.gate, c.reduce, *c.penalties)]
        for stage in used:
            assert f"`{stage['name']}`" in entry, f"{name} does not name {stage['name']}"
        if "arxiv" in recipe.paper:
            assert recipe.paper["arxiv"] in entry
    for kind in ("shape", "advantage", "select", "weight", "gate", "penalty", "reduce"):
        for stage_name in stages(kind):
            assert f"`{stage_name}`" in page or f"name: {stage_name}" in page or f"[{stage_name}]" in page, stage_name
