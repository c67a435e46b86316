"""Whole runs of the masked family on a toy model: phases, what each changes, resuming in either, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_tokens import load_policy, settings

from mmrl import config_io, families
from mmrl.core.streams import Streams
from mmrl.errors import UserError
from mmrl.selection.base import find
from mmrl.training import checkpoint
from mmrl.training.objectives import objectives
from mmrl.training.rollouts import Request
from mmrl.training.run import train
from mmrl.training.stored import evaluate_run
from mmrl.training.trainer import Trainer

TIMES = ("seconds", "tokens_per_s")


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    one = families.Family("toy-masked", config="image_gen.masked.config", entry="toy_tokens")
    monkeypatch.setitem(families.FAMILIES, "toy-masked", one)


def config(out: Path, **sections: Any) -> Any:
    return config_io.build(settings(out, **sections), folder=Path.cwd())


def lines(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]


def weights(run: Path, step: int = -1) -> dict[str, torch.Tensor]:
    """Of the policy, as a checkpoint keeps them."""
    state = load_file(checkpoint.folders(run)[step] / "trainable.safetensors")
    return {name.removeprefix("policy/"): value for name, value in state.items() if name.startswith("policy/")}


LEARNING = {"channels.schedule.optimiser.lr": 0.05}


def test_both_channels_learn_in_turns_from_fresh_rollouts(tmp_path: Path) -> None:
    run = train(
        config(tmp_path / "run", train={"steps": 24}, optimiser={"lr": 0.02}, recipe_options=LEARNING), progress=False
    )
    summary = json.loads((run / "summary.json").read_text())
    assert {"reward", "judge", "diversity", "steps_to_base_quality"} <= set(summary["before"])
    assert summary["after"]["reward"] > summary["before"]["reward"] + 0.05
    assert summary["after"]["judge"] > summary["before"]["judge"] + 0.02
    assert evaluate_run(run)["reward"] == pytest.approx(summary["after"]["reward"])
    steps = lines(run)[1:]
    assert [row["phase"] for row in steps] == ["tokens", "schedule"] * 12
    assert max(row["sampler_gap"] for row in steps) < 1e-5  # the ratio of the first update of every phase is 1
    assert steps[0]["reward"] != steps[1]["reward"]
    assert [row["decisions"] for row in steps[:2]] == [16 * 16, 16 * 3]
    assert steps[0]["lr"] == 0.02 and steps[1]["lr"] == 0.05


def test_a_phase_changes_its_own_channel_only_and_the_period_can_be_set(tmp_path: Path) -> None:
    options = LEARNING | {"phases": [["tokens", 2], ["schedule", 1]]}
    run = train(
        config(tmp_path / "run", recipe_options=options, checkpoint={"every": 1, "keep_last": 10}, train={"steps": 6}),
        progress=False,
    )
    assert [row["phase"] for row in lines(run)[1:]] == ["tokens", "tokens", "schedule"] * 2
    states = [weights(run, i) for i in range(len(checkpoint.folders(run)))]
    for at, channel in enumerate(["tokens", "schedule", "tokens", "tokens", "schedule"]):
        one, other = states[at], states[at + 1]
        changed = {name.startswith("schedule.") for name in one if not torch.equal(one[name], other[name])}
        assert changed == {channel == "schedule"}


@pytest.mark.parametrize(("recipe", "mine"), [("mask-grpo", False), ("schedule-grpo", True)])
def test_each_half_alone(tmp_path: Path, recipe: str, mine: bool) -> None:
    made = config(tmp_path / "run", recipe=recipe, checkpoint={"every": 1, "keep_last": 9}, train={"steps": 4})
    run = train(made, progress=False)
    first, last = weights(run, 0), weights(run)
    changed = {name.startswith("schedule.") for name in first if not torch.equal(first[name], last[name])}
    assert changed == {mine}
    assert made.sampling.explore is mine


CHANGES: dict[str, dict[str, Any]] = {
    "co-grpo": {},
    "ema": {"ema": {"enabled": True, "decay": 0.9}},
    "net": {
        "model": {"schedule": {"kind": "net"}},
        "recipe_options": {"channels.schedule.optimiser.lr": 1e-4},
    },
    "learned deviation, smooth": {"model": {"schedule": {"deviation": {"learned": True}, "smooth": 0.5}}},
    "decay": {"model": {"schedule": {"deviation": {"every": 1, "drop": 0.1}}}},
    "geometric": {"recipe_options": {"channels.tokens.gate.level": "segment:step"}},
    "product": {"recipe_options": {"channels.tokens.gate.level": "segment-sum:step"}},
    "kl of both": {
        "recipe_options": {
            "channels.tokens.penalties": [{"name": "kl", "estimator": "k3", "coef": 0.1}],
            "channels.schedule.penalties": [{"name": "kl", "coef": 0.1}],
        }
    },
    "two updates": {"train": {"epochs": 2, "minibatches": 2}},
    "some steps": {"sampling": {"train_steps": 2}},
}


@pytest.mark.parametrize("at", [3, 4], ids=["before tokens", "before schedule"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_resume_equals_the_uninterrupted_run_in_either_phase(
    tmp_path: Path, change: dict[str, Any], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = change | {"checkpoint": {"every": 1}}
    whole = train(config(tmp_path / "whole", **change), progress=False)
    plain, count = Trainer.step, 0

    def killed(self: Trainer) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt  # as a kill would: nothing is saved now
        return plain(self)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "parts", **change), progress=False)
    monkeypatch.setattr(Trainer, "step", plain)
    parts = train(config(tmp_path / "parts", **change), resume=True, progress=False)
    assert lines(parts) == lines(whole)
    assert all(row["sampler_gap"] < 1e-5 for row in lines(whole)[1:])
    a, b = (checkpoint.folders(run)[-1] for run in (whole, parts))
    for file in a.glob("**/*.safetensors"):
        one, other = load_file(file), load_file(b / file.relative_to(a))
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def gradient(
    made: Any, channel: str = "tokens", *, two_pass: bool = False, moved: bool = False
) -> tuple[torch.Tensor, int]:
    """Of one update of a channel from the same rollouts; and the passes that it took. moved: after the deviation of the
    schedule has changed."""
    from mmrl.training.batch import Scored, table_of
    from mmrl.training.update import streaming_update

    torch.manual_seed(0)  # a net's hidden layers
    policy = load_policy(made)
    records = families.entry("toy-masked").builtin("toy:train")
    rollouts = policy.rollout([Request(r, 4) for r in records], Streams(0, 0))
    reward_n = torch.tensor([float(o[:, :2].mean()) for o in rollouts.outputs], dtype=torch.float64)
    scored = Scored(rollouts, reward_n[:, None], torch.ones(1), ["bright"])

    recipe = config_io.recipe_of(made, policy.unit)
    objective = objectives(recipe, policy, find("uniform", {}))[channel]
    table = table_of(scored, channel)
    table = objective.prepare(table.updated({"old_logp_nt": table["sampler_logp_nt"]}) if moved else table)
    if moved:
        with torch.no_grad():
            policy.schedule.spread.log_v.add_(0.02)
    result = streaming_update(policy, objective, rollouts, table, channel=channel, update=0, two_pass=two_pass)
    flat = [p.grad.flatten() for p in policy.parameters_of(channel) if p.grad is not None]
    return torch.cat(flat), result.passes


def test_with_the_schedule_frozen_the_gradient_is_that_of_mask_grpo(tmp_path: Path) -> None:
    frozen = config(tmp_path / "a", sampling={"explore": False})
    alone = config(tmp_path / "b", recipe="mask-grpo")
    one, other = gradient(frozen)[0], gradient(alone)[0]
    assert float(one.abs().max()) > 1e-4 and torch.equal(one, other)


@pytest.mark.parametrize("level", ["decision", "segment:step", "segment-sum:step"])
def test_one_pass_over_single_steps_is_exact(tmp_path: Path, level: str) -> None:
    made = config(
        tmp_path / "a",
        model={"path": "toy64", "piece_rows": 3},
        recipe_options={"channels.tokens.gate.level": level},
    )
    (once, passes), (twice, _) = gradient(made), gradient(made, two_pass=True)
    assert passes == 1
    torch.testing.assert_close(once, twice, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["table", "net"])
def test_two_passes_with_a_learned_deviation_are_exact(tmp_path: Path, kind: str) -> None:
    made = config(
        tmp_path / "a",
        model={"path": "toy64", "schedule": {"kind": kind, "deviation": {"learned": True}}},
        recipe_options={"channels.schedule.optimiser.lr": 1e-4},
    )
    once, _ = gradient(made, "schedule", moved=True)
    twice, _ = gradient(made, "schedule", moved=True, two_pass=True)
    assert float(once.abs().max()) > 1e-6
    torch.testing.assert_close(once, twice, rtol=1e-5, atol=1e-8)


def test_a_warm_start_leaves_the_choice_of_the_schedule(tmp_path: Path) -> None:
    from toy_tokens import ToyTokens

    from image_gen.masked.config import Model
    from image_gen.masked.schedule import beside

    warm = train(config(tmp_path / "warm", recipe="mask-grpo", train={"steps": 1}), progress=False)
    trained = train(config(tmp_path / "run", train={"steps": 2}), progress=False)

    def schedule_of(run: Path, **options: Any) -> Any:
        model = Model.model_validate({"path": str(checkpoint.folders(run)[-1] / "model"), "schedule": options})
        return beside.schedule_of(model, ToyTokens(), steps=4, size=(4, 4))

    assert schedule_of(warm, kind="net").options.kind == "net"
    assert schedule_of(trained).options.kind == "table" and schedule_of(trained).trained
    with pytest.raises(UserError, match="model.schedule.kind: net is asked for, the schedule stored with .* has table"):
        schedule_of(trained, kind="net")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one step": ({"sampling": {"steps": 1}}, "sampling.steps: 1 step leaves recipe 'co-grpo' no action to train"),
    "no exploration": ({"sampling": {"explore": False}}, "sampling.explore: recipe 'co-grpo' trains the schedule"),
    "more steps than there are": ({"sampling": {"train_steps": 9}}, "train_steps: 9 of 4 steps cannot be chosen"),
    "unknown variable": ({"model": {"schedule": {"learn": ["ratios"]}}}, "ratio"),
    "below the floor": ({"model": {"schedule": {"deviation": {"start": 0.01}}}}, "lies below floor"),
    "a table's rate for a net": (
        {"model": {"schedule": {"kind": "net"}}},
        "channels.schedule.optimiser.lr of recipe 'co-grpo' is for a table",
    ),
    "two hand-made schedules": (
        {"model": {"schedule": {"base": "adanat"}}, "sampling": {"mask_schedule": "linear"}},
        "sampling.mask_schedule: AdaNAT's formula",
    ),
    "flow's sampling": ({"recipe": "flow-grpo"}, "choose a recipe of this family"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=list(BAD))
def test_bad_input_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        train(config(tmp_path / "run", **change), progress=False)
    assert "\n" not in str(caught.value)


def test_one_step_is_enough_for_the_tokens(tmp_path: Path) -> None:
    run = train(config(tmp_path / "run", recipe="mask-grpo", sampling={"steps": 1}, train={"steps": 2}), progress=False)
    assert [row["phase"] for row in lines(run)[1:]] == ["tokens"] * 2
