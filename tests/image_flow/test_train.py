"""Whole runs of the flow family on a toy model: learning, resuming with averages and trackers, what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_flow import settings
from toy_model import ToyModel

from mmrl import config_io, families
from mmrl.errors import UserError
from mmrl.training import checkpoint
from mmrl.training.run import train
from mmrl.training.stored import evaluate_run

TIMES = ("seconds", "tokens_per_s")


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ("image_gen.flow.stages",)
    one = families.Family("toy-flow", config="image_gen.flow.config", entry="toy_flow", extra_stages=stages)
    monkeypatch.setitem(families.FAMILIES, "toy-flow", one)


def config(out: Path, **sections: Any) -> Any:
    return config_io.build(settings(out, **sections), folder=Path.cwd())


def lines(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]


def test_a_run_learns_and_is_judged_by_another(tmp_path: Path) -> None:
    options = {"recipe_options": {"bounds.low": 0.02, "bounds.high": 0.02, "penalties.kl.coef": 0.0}}
    run = train(config(tmp_path / "run", train={"steps": 25}, optimiser={"lr": 0.02}, **options), progress=False)
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["before"]) == {"reward", "judge", "diversity"}
    assert summary["after"]["reward"] > summary["before"]["reward"] + 0.1
    assert summary["after"]["judge"] > summary["before"]["judge"] + 0.05
    assert evaluate_run(run)["reward"] == pytest.approx(summary["after"]["reward"])
    shown = [json.loads(line) for line in (run / "samples" / "step-000025.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in shown] == ["an ode", "oboe"]
    assert all((run / "samples" / row["image"]).is_file() for row in shown)


RECIPES: dict[str, dict[str, Any]] = {
    "flow-grpo": {},
    "ema": {"ema": {"enabled": True, "decay": 0.9}},
    "vgpo": {"recipe": "vgpo"},
    "guard": {"recipe": "grpo-guard", "recipe_options": {}},
    "tracked": {
        "recipe_options": {"advantage": {"name": "tracked"}, "bounds.low": 0.01, "bounds.high": 0.01},
        "train": {"steps": 6, "prompts": 4, "group": 4, "prompt_statistics": {"buffer": 8, "min_count": 6}},
    },
    "sliding": {"sampling": {"window": {"name": "sliding", "options": {"width": 2, "iters_per_group": 2}}}},
    "beside": {"rewards": {"beside": 3}},
}


@pytest.mark.parametrize("change", RECIPES.values(), ids=list(RECIPES))
def test_resume_equals_the_uninterrupted_run(
    tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config(tmp_path / "whole", **change), progress=False)
    from mmrl.training.trainer import Trainer

    plain, count = Trainer.step, 0

    def killed(self: Trainer) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt  # as a kill would: nothing is saved now
        return plain(self)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "parts", **change), progress=False)
    monkeypatch.setattr(Trainer, "step", plain)
    parts = train(config(tmp_path / "parts", **change), resume=True, progress=False)
    assert lines(parts) == lines(whole)
    a, b = (checkpoint.folders(run)[-1] for run in (whole, parts))
    for file in a.glob("*.safetensors"):
        one, other = load_file(file), load_file(b / file.name)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_scoring_beside_the_sampling_changes_nothing(tmp_path: Path) -> None:
    after = train(config(tmp_path / "after"), progress=False)
    beside = train(config(tmp_path / "beside", rewards={"beside": 2}), progress=False)
    for one, other in zip(lines(after), lines(beside), strict=True):
        assert one["step"] == other["step"] and one.get("reward") == pytest.approx(other.get("reward"), abs=1e-6)


def test_the_samplers_likelihood_stands_in_for_the_old_pass(tmp_path: Path) -> None:
    runs = {old: train(config(tmp_path / old, train={"old_pass": old}), progress=False) for old in ("auto", "always")}
    a, b = (load_file(checkpoint.folders(run)[-1] / "trainable.safetensors") for run in runs.values())
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-5)


def test_the_recipes_sampling_stands_below_the_runs_own(tmp_path: Path) -> None:
    made = config(tmp_path / "run", recipe="dance-grpo", sampling={"steps": 5})
    assert (made.sampling.rule, made.sampling.noise, made.sampling.steps) == ("dance", 0.3, 5)
    with pytest.raises(UserError, match="sets sampling.rule, which family 'vlm' does not have"):
        vlm = {
            "family": "vlm",
            "recipe": "dance-grpo",
            "model": {"path": "embedded:vlm"},
            "data": {"train": "digits:train"},
        }
        config_io.build(vlm, folder=Path.cwd())


def test_one_option_of_the_recipes_window_keeps_the_rest_and_another_name_replaces_it(tmp_path: Path) -> None:
    made = config(
        tmp_path / "run",
        recipe="mix-grpo",
        recipe_options={},
        sampling={"steps": 10, "window": {"options": {"end": 8}}},
    )
    assert made.sampling.window.name == "sliding"
    assert made.sampling.window.options == {
        "width": 4,
        "iters_per_group": 25,
        "stride": 1,
        "overlap": True,
        "roll_back": True,
        "end": 8,
    }
    other = config(
        tmp_path / "run", recipe="mix-grpo", recipe_options={}, sampling={"steps": 10, "window": {"name": "all"}}
    )
    assert other.sampling.window.options == {}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "fractional width": ({"window": {"name": "random", "options": {"width": 2.5}}}, "width must be a whole number"),
    "text for a number": ({"window": {"name": "all", "options": {"fraction": "half"}}}, "wrong type"),
    "cps at the last step": (
        {"rule": "cps", "window": {"name": "random", "options": {"width": 2, "end": 4}}},
        "where cps has no deviation",
    ),
    "nothing to interpolate": ({"score_every": 2}, "only recipes with rewards per step"),
}


@pytest.mark.parametrize(("sampling", "said"), BAD.values(), ids=list(BAD))
def test_bad_sampling_is_one_line(tmp_path: Path, sampling: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        train(config(tmp_path / "run", sampling=sampling), progress=False)


def test_the_tolerance_of_the_sampler_gap_follows_the_clip() -> None:
    from mmrl import recipes
    from mmrl.core.objective import Objective
    from mmrl.core.recipe import parse
    from mmrl.training.objectives import gap_tolerance

    def of(slug: str, unit: str, **options: Any) -> float:
        recipe = parse(slug, recipes.read(slug), unit=unit, options=options)
        kind = families.entry("toy-flow").POLICY
        objective = Objective(recipe, channel="steps", unit=unit, provides=kind.provides | {"entropy_nt"}, dense=True)
        return gap_tolerance(objective, 1e-3)

    assert of("flow-grpo", "element-mean") == 1e-4
    assert of("flow-grpo-fast", "element-mean") == 1e-5 and of("grpo-guard", "element-mean") == 1e-5
    assert of("grpo", "decision") == 1e-3


def test_pictures_that_are_not_finite_are_left_out_of_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ToyModel.velocity

    def broken(self: ToyModel, x_n: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        v_n = plain(self, x_n, *args, **kwargs)
        return torch.cat([v_n[:1] * float("nan"), v_n[1:]])

    made = config(tmp_path / "run", train={"steps": 0}, sampling={"guidance": 1.0})
    clean = json.loads((train(made, progress=False) / "summary.json").read_text())["before"]
    monkeypatch.setattr(ToyModel, "velocity", broken)
    made = config(tmp_path / "broken", train={"steps": 0}, sampling={"guidance": 1.0})
    before = json.loads((train(made, progress=False) / "summary.json").read_text())["before"]
    assert before["unusable"] == pytest.approx(1 / 6) and "unusable" not in clean
    assert before["reward"] > 0.5 * clean["reward"]


def test_negative_rewards_without_a_guard_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change: dict[str, Any] = {"recipe": "vgpo", "recipe_options": {}, "train": {"steps": 1}}
    run = train(config(tmp_path / "run", rewards={"components": [{"name": "toy-signed"}]}, **change), progress=False)
    (row,) = lines(run)[1:]
    assert row["unguarded_rewards"] > 0
    assert [s["kind"] for s in row["signs"]] == ["unguarded"]
    change["recipe_options"] = {"advantage.omega_clip": [0.2, 5.0]}
    guarded = train(
        config(tmp_path / "guarded", rewards={"components": [{"name": "toy-signed"}]}, **change), progress=False
    )
    assert lines(guarded)[1]["unguarded_rewards"] == 0 and lines(guarded)[1]["signs"] == []


def test_rows_that_are_not_finite_are_told_with_their_seed_and_a_step_of_them_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, calls = ToyModel.velocity, 0

    def broken(self: ToyModel, x_n: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        v_n = plain(self, x_n, *args, **kwargs)
        return v_n * float("nan") if 8 < calls <= 12 else v_n

    monkeypatch.setattr(ToyModel, "velocity", broken)  # 8 calls before training: evaluation and samples
    run = train(config(tmp_path / "run", train={"steps": 2}, seed=5), progress=False)
    first, second = lines(run)[1:]
    assert first["updates"] == 0 and first["reward_failures"] == 16
    assert second["rows"] == 16 and second["updates"] == 2
    assert "its latents are not finite (seed 5, step 1)" in capsys.readouterr().err


def test_one_sample_a_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set train.group to 2 or more"):
        config(tmp_path / "run", train={"group": 1})


def test_cps_cannot_be_guarded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cps drops its factor"):
        train(
            config(tmp_path / "run", recipe="grpo-guard", recipe_options={}, sampling={"rule": "cps"}), progress=False
        )
