"""Whole runs of the toy family: learning, resuming, controls, policies for groups without variance, guards."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrl import config_io, families
from mmrl.errors import UserError
from mmrl.training import checkpoint, optim
from mmrl.training.run import train
from mmrl.training.stored import evaluate_run, model_folder
from mmrl.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parent))
TIMES = ("seconds", "tokens_per_s")


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "toy", families.Family("toy", config="toy_config", entry="toy_family"))


def config(out: Path, **sections):
    base = {
        "family": "toy",
        "recipe": "grpo",
        "out": str(out),
        "data": {"train": "toy:train", "eval": "toy:eval"},
        "rewards": {"components": [{"name": "zeros"}]},
        "train": {"steps": 6, "prompts": 4, "group": 4},
        "optimiser": {"lr": 0.1},
        "checkpoint": {"every": 2},
        "log": {"tensorboard": False},
    }
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return config_io.build(base, folder=Path.cwd())


def lines(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]


def test_a_run_learns_and_writes_its_folder(tmp_path: Path) -> None:
    run = train(config(tmp_path / "run", train={"steps": 40}), progress=False)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["after"]["reward"] > summary["before"]["reward"] + 0.3
    assert {"family", "recipe", "seed", "chance", "before", "after", "steps", "seconds"} <= set(summary)
    assert [row["step"] for row in lines(run)] == list(range(41))
    assert (run / "config.yaml").exists() and (run / "samples" / "step-000040.jsonl").exists()
    kept = [p.name for p in checkpoint.folders(run)]
    assert kept[-1] == "step-000040" and len(kept) <= 3
    assert evaluate_run(run)["reward"] == pytest.approx(summary["after"]["reward"])


def test_the_shuffled_control_learns_nothing(tmp_path: Path) -> None:
    gains = []
    for seed in range(3):
        run = train(
            config(tmp_path / f"run{seed}", seed=seed, train={"steps": 40, "control": "shuffled"}), progress=False
        )
        s = json.loads((run / "summary.json").read_text())
        gains.append(s["after"]["reward"] - s["before"]["reward"])
    assert sum(gains) / 3 < 0.1


@pytest.mark.parametrize(
    "change",
    [{}, {"recipe": "gspo"}, {"recipe": "dapo"}, {"recipe": "sft", "train": {"group": 1}}, {"ema": {"enabled": True}}],
    ids=["grpo", "gspo", "dapo", "sft", "ema"],
)
def test_resume_equals_the_uninterrupted_run(tmp_path: Path, change: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(config(tmp_path / "whole", **change), progress=False)
    original, calls = Trainer.step, []

    def dies(self):
        if len(calls) == 5:  # after step 5: step 5 is lost, the checkpoint of step 4 stands
            raise KeyboardInterrupt
        calls.append(1)
        return original(self)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "cut", **change), progress=False)
    monkeypatch.setattr(Trainer, "step", original)
    torch.manual_seed(999)
    cut = train(config(tmp_path / "cut", **change), resume=True, progress=False)
    assert lines(cut) == lines(whole)
    a, b = (load_file(checkpoint.step_folder(r, 6) / "trainable.safetensors") for r in (whole, cut))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_resume_before_the_first_checkpoint_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(config(tmp_path / "whole"), progress=False)
    original = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "cut"), progress=False)
    monkeypatch.setattr(Trainer, "step", original)
    cut = train(config(tmp_path / "cut"), resume=True, progress=False)
    assert lines(cut) == lines(whole)


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    train(config(tmp_path / "run", train={"steps": 1}), progress=False)
    with pytest.raises(UserError, match="--resume"):
        train(config(tmp_path / "run"), progress=False)
    with pytest.raises(UserError, match="nothing to resume"):
        train(config(tmp_path / "new"), resume=True, progress=False)


def test_the_first_update_agrees_with_the_sampler(tmp_path: Path) -> None:
    run = train(config(tmp_path / "run"), progress=False)
    assert all(row["sampler_gap"] < 1e-9 for row in lines(run)[1:])


def test_several_updates_clip_against_the_old_policy(tmp_path: Path) -> None:
    run = train(config(tmp_path / "run", train={"epochs": 3}, optimiser={"lr": 0.2}), progress=False)
    rows = lines(run)[1:]
    assert all(row["updates"] == 3 for row in rows)
    assert any(row["clip_low"] + row["clip_high"] > 0 for row in rows)
    assert any(abs(row["ratio"] - 1) > 1e-3 for row in rows)


def test_kl_pulls_back_to_the_start(tmp_path: Path) -> None:
    near = lines(train(config(tmp_path / "a", recipe_options={"penalties.kl.coef": 50.0}), progress=False))
    free = lines(train(config(tmp_path / "b", recipe_options={"penalties.kl.coef": 1e-6}), progress=False))
    assert near[1]["kl"] == 0.0 and free[-1]["kl"] > near[-1]["kl"] * 2


def flat_reward(outputs, records, info):
    return [1.0] * len(outputs)


def test_groups_without_variance(tmp_path: Path) -> None:
    from mmrl.rewards.registry import reward

    reward("flat", tasks=("toy",))(flat_reward)
    free = {"penalties": []}
    rewards = {"components": [{"name": "flat"}]}
    for policy, updates in (("keep", 1), ("mask", 0), ("drop", 0), ("resample", 0)):
        run = train(
            config(
                tmp_path / policy,
                recipe_options=free,
                rewards=rewards,
                train={"steps": 1, "zero_variance": policy, "resample_rounds": 2},
            ),
            progress=False,
        )
        row = lines(run)[1]
        assert row["updates"] == updates
        assert row.get("grad_norm", 0.0) == 0.0
        if policy == "resample":
            assert row["resample_rounds"] == 2 and row["resampled_groups"] == 12
    with pytest.raises(UserError, match="would also silence"):
        train(config(tmp_path / "kl", train={"zero_variance": "drop"}), progress=False)


def test_masked_groups_stay_in_the_count(tmp_path: Path) -> None:
    """`mask` divides by all rows, `drop` by the kept ones."""
    norms = {}
    for policy in ("keep", "mask", "drop"):
        c = config(
            tmp_path / policy,
            recipe_options={"penalties": []},
            rewards={"components": [{"name": "half"}]},
            train={"steps": 1, "zero_variance": policy},
            optimiser={"grad_norm": None},
        )
        norms[policy] = lines(train(c, progress=False))[1]["grad_norm"]
    assert norms["keep"] == pytest.approx(norms["mask"], rel=1e-9)
    assert norms["drop"] > norms["mask"] * 1.2


def _half(outputs, records, info):
    """Varies only for some prompts."""
    return [float(o.count("0")) if int(r.id[1:]) % 2 else 1.0 for o, r in zip(outputs, records, strict=True)]


def setup_module() -> None:
    from mmrl.rewards.registry import reward

    reward("half", tasks=("toy",))(_half)


def test_non_finite_updates_are_skipped_then_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = optim.ChannelOptimiser.step
    monkeypatch.setattr(
        optim.ChannelOptimiser,
        "step",
        lambda self, loss: original(self, float("nan") if self.steps == 2 else loss),
    )
    with pytest.raises(UserError, match="5 updates in a row were not finite"):
        train(config(tmp_path / "run", train={"steps": 20}), progress=False)
    rows = lines(tmp_path / "run")
    assert [row["updates"] for row in rows[1:]] == [1, 1, 0, 0, 0, 0]
    assert rows[-1]["skipped_updates"] == 4


def test_relative_recipe_needs_a_group(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.group"):
        train(config(tmp_path / "run", train={"group": 1}), progress=False)


def test_model_folder_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        model_folder(tmp_path / "nothing")
    run = train(config(tmp_path / "run", train={"steps": 3}), progress=False)
    assert model_folder(run).name == "model"
    step = checkpoint.step_folder(run, 3)
    (step / "state.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        model_folder(step)


def test_a_selector_decides_what_is_kept_and_is_resumed(tmp_path: Path) -> None:
    from mmrl.selection.base import selector
    from mmrl.selection.uniform import Uniform

    class Picky(Uniform):
        """Drops the first group after rewards, the last row after advantages; counts what it saw."""

        def __init__(self, records, *, spare: int = 0, **order):
            super().__init__(records, **order)
            self.spare, self.seen, self.scored = spare, 0, 0

        def observe(self, requests, reward_n, prompt_n):
            self.seen += len(reward_n)

        def keep_groups(self, requests, seen):
            return seen.prompt_n >= self.spare

        def keep_rows(self, table):
            keep = torch.ones(len(table["reward_n"]), dtype=torch.bool)
            keep[-1] = False
            return keep

        def after_update(self, score):
            self.scored = len(score())

        def state_dict(self):
            return {**super().state_dict(), "seen": self.seen, "scored": self.scored}

        def load_state_dict(self, state):
            super().load_state_dict(state)
            self.seen, self.scored = state["seen"], state["scored"]

    selector("picky")(Picky)
    c = config(tmp_path / "run", selection={"name": "picky", "options": {"spare": 1}}, train={"steps": 2})
    run = train(c, progress=False)
    state = json.loads((checkpoint.step_folder(run, 2) / "state.json").read_text())["trainer"]["selector"]
    assert state == {"drawn": 8, "seen": 32, "scored": 12}
    assert lines(run)[1]["rows"] == 12
    with pytest.raises(UserError, match="did you mean 'spare'"):
        train(config(tmp_path / "bad", selection={"name": "picky", "options": {"sparse": 1}}), progress=False)
    with pytest.raises(UserError, match="did you mean 'uniform'"):
        train(config(tmp_path / "bad2", selection={"name": "uniforn"}), progress=False)


def test_a_plugin_registers_a_family_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(families.FAMILIES, "toy")
    (tmp_path / "toy_plugin.py").write_text(
        'from mmrl.families import Family, register\nregister(Family("toy", config="toy_config", entry="toy_family"))\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = train(config(tmp_path / "run", plugins=["toy_plugin"], train={"steps": 1}), progress=False)
    assert lines(run)[1]["updates"] == 1
    with pytest.raises(UserError, match="exists already"):
        families.register(families.Family("vlm", config="toy_config", entry="toy_family"))


@pytest.mark.parametrize("value", [-3, "abc"])
def test_impossible_clip_widths_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match="low must be a number of at least 0"):
        train(config(tmp_path / "run", recipe_options={"bounds.low": value}), progress=False)


def test_a_misspelt_coefficient_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'coef'"):
        train(config(tmp_path / "run", recipe_options={"penalties.kl.coeff": 1.0}), progress=False)


def test_resampling_that_never_finds_a_group_ends_the_run(tmp_path: Path) -> None:
    from mmrl.rewards.registry import reward

    reward("flat", tasks=("toy",))(flat_reward)
    c = config(
        tmp_path / "run",
        recipe="dapo",
        rewards={"components": [{"name": "flat"}]},
        train={"steps": 9, "max_bad_steps": 3, "resample_rounds": 1},
    )
    with pytest.raises(UserError, match="no group had different rewards in 3 steps"):
        train(c, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "sft", "train": {"group": 1, "zero_variance": "resample"}}, "resample would drop everything"),
        (
            {
                "recipe_options": {"penalties": [], "reduce.name": "token-mean-local"},
                "train": {"zero_variance": "mask"},
            },
            "token-mean-local",
        ),
        ({"recipe_options": {"optimiser": {"lrr": 1}}}, "lrr"),
    ],
)
def test_choices_that_cannot_work_together(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(config(tmp_path / "run", **change), progress=False)


def test_entropy_is_watched_without_a_say(tmp_path: Path) -> None:
    watched = lines(train(config(tmp_path / "a", log={"entropy_every": 2}, recipe="gspo"), progress=False))
    blind = lines(train(config(tmp_path / "b", log={"entropy_every": 0}, recipe="gspo"), progress=False))
    assert [("entropy" in row) for row in watched[1:]] == [True, False] * 3
    assert all(0 < row["entropy"] <= 1.6095 for row in watched[1::2])  # at most ln 5
    assert not any("entropy" in row for row in blind)
    assert [row["reward"] for row in watched[1:]] == [row["reward"] for row in blind[1:]]
