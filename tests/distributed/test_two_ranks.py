"""Two gloo processes give the run of one: the same rollouts, rewards, updates, stage states and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import launch, log, tensors, toy

from mmrl import config_io, families
from mmrl.training import checkpoint
from mmrl.training.checkpoint import step_folder
from mmrl.training.run import train

#: Changes to the toy configuration. Groups are dropped by dapo (resample) and by `drop`; rows are ragged everywhere.
CASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "kl": {"recipe": "visual-rft"},
    "gspo": {"recipe": "gspo", "train": {"epochs": 2, "minibatches": 3}},
    "dapo": {"recipe": "dapo", "train": {"group": 2}},
    "drop": {"recipe": "dr-grpo", "train": {"zero_variance": "drop", "group": 2, "minibatches": 2}},
    "mask": {"recipe": "dr-grpo", "train": {"zero_variance": "mask", "group": 2}},
    "rloo": {"recipe": "rloo", "ema": {"enabled": True}},
    "reinforce": {"recipe": "reinforce-pp"},
    "columns": {"recipe": "gspo", "model": {"cut": "columns"}},
    "two passes": {"train": {"two_pass": "always"}, "recipe": "cispo"},
    "local counts": {
        "recipe_options": {"penalties": [], "reduce.name": "token-mean-local"},
        "model": {"cut": "prompts"},
    },
    "sft": {"recipe": "sft", "train": {"group": 1}},
    "shuffled": {"train": {"control": "shuffled"}},
    "selector": {"selection": {"name": "remembering"}, "plugins": ["rank_plugins"], "train": {"minibatches": 2}},
    "filtered": {
        "recipe": "gdpo-decoupled",
        "recipe_options": {"penalties": [{"name": "nll", "coef": 0.5, "reduce": "token-mean-correct"}]},
        "plugins": ["rank_plugins"],
        "rewards": {"components": [{"name": "zeros", "success": 0.5}, {"name": "ones"}]},
        "selection": {
            "name": "filtered",
            "options": {"spread": {"ones": 0.3}, "need_correct": True, "share_correct": [0.0, 0.7], "refill_rounds": 2},
        },
    },
    "all filtered": {
        "selection": {"name": "filtered", "options": {"spread": {"zeros": 9.0}, "refill_rounds": 1}},
        "train": {"max_bad_steps": 9},
    },
    "failing reward": {
        "plugins": ["rank_plugins"],
        "rewards": {"components": [{"name": "fails-on-r3"}], "on_error": "skip"},
    },
    "missing reward": {"plugins": ["rank_plugins"], "rewards": {"components": [{"name": "nothing-for-r3"}]}},
}
TWO = {
    "family": "toy-two",
    "recipe": "co-grpo",
    "data": {"train": "toy_two:train", "eval": "toy_two:eval"},
    "rewards": {"components": [{"name": "zeros-two"}]},
    "ema": {"enabled": True},
}
CASES |= {  # two channels in turns, their tables of different widths
    "turns": TWO,
    "turns, product, penalties": {
        **TWO,
        "recipe_options": {
            "channels.tokens.gate.level": "segment-sum:step",
            "channels.tokens.penalties.kl.coef": 0.1,
            "channels.schedule.penalties.kl.coef": 0.1,
            "phases": [["schedule", 1], ["tokens", 2]],
        },
        "train": {"epochs": 2, "minibatches": 2},
    },
    "turns, cut segments": {
        **TWO,
        "recipe_options": {"channels.tokens.gate.level": "segment:step", "channels.tokens.reduce.counted": True},
        "model": {"cut": "columns"},
    },
}
STOPS = {"plugins": ["rank_plugins"], "rewards": {"components": [{"name": "fails-on-r3"}]}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one/CASE by one process, run-of-two/CASE by two."""
    root = tmp_path_factory.mktemp("ranks")
    families.FAMILIES["toy"] = families.Family("toy", config="toy_config", entry="toy_family")
    families.FAMILIES["toy-two"] = families.Family("toy-two", config="toy_two_config", entry="toy_two_family")
    try:
        for name, change in CASES.items():
            train(config_io.build(toy(root / "one" / name, **change), folder=Path.cwd()), progress=False)
    finally:
        del families.FAMILIES["toy"], families.FAMILIES["toy-two"]
    jobs = [{"config": toy(root / "run-of-two" / name, **change)} for name, change in CASES.items()]
    last = [
        {"config": toy(root / "run-of-two" / "stopped", **STOPS)},
        {"config": toy(root / "few", train={"prompts": 1})},
        {"config": toy(root / "apart", data={"train": "toy:train-of-rank"})},
        {"config": toy(root / "gone", plugins=["rank_plugins"], rewards={"components": [{"name": "fails-on-r4"}]})},
    ]
    told = launch([*jobs, *last], root)
    assert [t[: len(jobs)] for t in told] == [["done"] * len(jobs)] * 2
    (root / "told.json").write_text(json.dumps([t[len(jobs) :] for t in told]))
    return root


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_run_of_one(runs: Path, case: str) -> None:
    one, two = log(runs / "one" / case), log(runs / "run-of-two" / case)
    assert len(one) == 6
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == (pytest.approx(value, abs=1e-9) if isinstance(value, float) else value), key
    alone, shared = tensors(runs / "one" / case, 5), tensors(runs / "run-of-two" / case, 5)
    assert alone.keys() == shared.keys()
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=0, atol=1e-9, msg=name)


def test_what_stages_remember_is_the_same(runs: Path) -> None:
    """What the selector saw, the counters (failures counted over all ranks) and diagnostics."""
    for case in ("selector", "failing reward", "dapo"):
        one, two = (
            checkpoint.read(step_folder(runs / where / case, 5)).state["trainer"] for where in ("one", "run-of-two")
        )
        for state in (one, two):
            for name in ("seconds", "seconds_cpu"):
                del state["counters"][name]
        assert rounded(one["counters"]) == rounded(two["counters"])
        assert one["selector"] == two["selector"] and rounded(one["scorer"]) == rounded(two["scorer"])
        assert rounded(one["diagnostics"]) == rounded(two["diagnostics"])
    assert one["counters"]["reward_failures"] == 0
    failing = checkpoint.read(step_folder(runs / "run-of-two" / "failing reward", 5)).state["trainer"]
    assert failing["counters"]["reward_failures"] > 0


def test_a_mistake_ends_all_ranks_and_is_told_once(runs: Path) -> None:
    told = json.loads((runs / "told.json").read_text())
    expected = [
        "record 'r3'",
        "train.prompts: 1 prompts a step cannot be shared by 2 processes",
        "distributed: records differ between the processes",
        "record 'r4'",
    ]
    for text, first, second in zip(expected, *told, strict=True):
        assert text in first and text in second
        assert (first.split(":")[0], second.split(":")[0]) == ("loud", "quiet")
    assert not (runs / "few").exists() and not (runs / "apart").exists()


def test_one_rank_writes_and_the_files_are_those_of_one(runs: Path) -> None:
    """The worker stops when rank 1 writes; see `refuse_to_write`."""
    for case in ("grpo", "dapo"):
        one, two = (sorted(p.relative_to(r).as_posix() for p in r.rglob("*")) for r in folders(runs, case))
        assert one == two


def test_rollouts_are_the_same(runs: Path) -> None:
    """Rows written for people: outputs and rewards of the last step."""
    for case in ("grpo", "dapo", "selector"):
        one, two = ([p.read_text() for p in sorted((r / "samples").glob("rollouts-*"))] for r in folders(runs, case))
        assert one == two and len(one) == 1


def folders(runs: Path, case: str) -> tuple[Path, Path]:
    return runs / "one" / case, runs / "run-of-two" / case


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 8) if isinstance(value, float) else value
