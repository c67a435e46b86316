"""Whole runs of the family on tiny random checkpoints: every recipe, resuming, imitation, what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import FAST, config, lines, weights

from dlm.tasks.catalogue import builtin
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.run import train
from mmrl.training.stored import evaluate_run
from mmrl.training.trainer import Trainer

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gdpo": ("llada", {}),
    "gdpo-paper": ("llada", {"recipe_options": {"gate.level": "row-sum", "gate.loss_norm": "length"}}),
    "gdpo-kl": (
        "sdar",
        {"recipe_options": {"penalties": [{"name": "kl", "level": "row", "estimator": "k2", "coef": 0.1}]}},
    ),
    "diffu-grpo": ("dream", {"recipe": "diffu-grpo"}),
    "tracerl": ("sdar", {"recipe": "tracerl", "sampling": {"rule": "threshold", "threshold": 0.02}}),
    "lightningrl": (
        "sdar",
        {
            "recipe": "lightningrl",
            "sampling": {"threshold": 0.02, "cache": "block"},
            "train": {"minibatches": 1},
            "rewards": FAST,
        },
    ),
    "lightningrl-llada": (
        "llada",
        {"recipe": "lightningrl", "sampling": {"threshold": 0.02}, "train": {"minibatches": 1}, "rewards": FAST},
    ),
    "lora": ("llada", {"model": {"adapter": {"kind": "lora", "rank": 4, "alpha": 8.0}}}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_and_resumes_with_the_masks_it_stored(
    tmp_path: Path, folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, change = RECIPES[name]
    whole = train(config(tmp_path / "whole", folders[model], **change), progress=False)
    plain, count = Trainer.step, 0

    def killed(self: Trainer) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt  # as a kill would: nothing is saved now
        return plain(self)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path / "parts", folders[model], **change), progress=False)
    monkeypatch.setattr(Trainer, "step", plain)
    parts = train(config(tmp_path / "parts", folders[model], **change), resume=True, progress=False)
    assert lines(parts) == lines(whole)
    one, other = weights(whole), weights(parts)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    steps = [row for row in lines(whole) if row["step"]]
    assert sum(row["updates"] for row in steps) > 0
    first = next(row for row in steps if row["updates"])
    assert first["sampler_gap"] < 1e-3
    after = json.loads((whole / "summary.json").read_text())["after"]
    assert evaluate_run(whole)["reward"] == pytest.approx(after["reward"])


@pytest.mark.parametrize("model", ["llada", "sdar", "dream"])
def test_imitation_learns_to_sort(tmp_path: Path, folders: dict[str, Path], model: str) -> None:
    run = train(
        config(
            tmp_path / "run",
            folders[model],
            recipe="sft",
            train={"steps": 60, "prompts": 16, "group": 1, "epochs": 1},
            optimiser={"lr": 1e-2},
            sampling={"max_new_tokens": 6, "block": 4},
            data={"train": "sort:start?k=3&n=200", "eval": "sort:eval?k=3&n=20"},
        ),
        progress=False,
    )
    loss = [row["loss"] for row in lines(run) if row["step"]]
    assert sum(loss[-10:]) / 10 < 0.5 * sum(loss[:5]) / 5
    after = json.loads((run / "summary.json").read_text())["after"]
    assert after["finished"] > 0.8


def test_a_step_whose_groups_are_all_filtered_trains_nothing(tmp_path: Path, folders: dict[str, Path]) -> None:
    change = {
        "recipe": "lightningrl",
        "rewards": {"components": [{"name": "exact", "success": 1.0}, {"name": "tpf"}]},
        "train": {"minibatches": 1, "steps": 2},
    }
    run = train(config(tmp_path / "run", folders["sdar"], **change), progress=False)
    steps = [row for row in lines(run) if row["step"]]
    assert [row["updates"] for row in steps] == [0, 0]
    assert all(row["filtered_groups"] == 9 and row["resample_rounds"] == 2 for row in steps)  # 3 and two refills


def records(**fields: Any) -> list[Record]:
    return [Record("odd", "sorting", **({"prompt": "3 1 2", "answer": "1 2 3"} | fields))]


WRONG = {
    "mask token in the answer": (
        {"recipe": "sft", "train": {"group": 1}},
        {"response": "1 <|mdm_mask|> 3"},
        "`response` contains the mask token",
    ),
    "answer longer than the canvas": (
        {"recipe": "sft", "train": {"group": 1}},
        {"response": "1 2 3 4 5 6 7"},
        "`response` has 14 tokens with its end, more than sampling.max_new_tokens 8",
    ),
    "no answer to imitate": ({"recipe": "sft", "train": {"group": 1}}, {"response": None}, "no `response` to imitate"),
    "prompt longer than the window": ({}, {"prompt": "9 " * 100}, "the prompt has 200 tokens, room is for 120"),
    "picture": ({}, {"images": ("a.png",)}, "reads text only"),
    "empty prompt": ({}, {"prompt": ""}, "the prompt is empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_records_that_cannot_be_used_are_named(
    tmp_path: Path, folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, fields, message = WRONG[name]
    import dlm.family

    monkeypatch.setattr(dlm.family, "builtin", lambda name: records(**fields) if ":train" in name else builtin(name))
    with pytest.raises(UserError, match="odd.*" + message.replace("|", r"\|")):
        train(config(tmp_path / "run", folders["llada"], **change), progress=False)


def test_an_empty_completion_is_scored_and_does_no_harm(tmp_path: Path, folders: dict[str, Path]) -> None:
    """The first token may be the end: the text is empty, one token is scored with region to_eos."""
    from tiny_policy import RECORDS, policy

    from mmrl.core.streams import Streams
    from mmrl.training.rollouts import Request
    from mmrl.training.update import evaluate

    one = policy(folders["llada"], likelihood={"name": "sdmc", "region": "to_eos"})
    rollouts = one.rollout([Request(RECORDS[0], 2)], Streams(0, 0))
    row = rollouts.rows[0]
    row.ids[0], row.length = one.ends[0], 1
    rollouts.tables["tokens"]["mask_nt"][0] = torch.arange(len(row)) < 1
    assert one.encoder.decode(row.ids) == ""
    logp = evaluate(one, rollouts, {"logp_nt"}, channel="tokens")["logp_nt"]
    assert torch.isfinite(logp).all() and bool((logp[0, 1:] == 0).all()) and float(logp[0, 0]) < 0


def test_held_out_records_may_be_decoded_at_another_threshold(folders: dict[str, Path]) -> None:
    from tiny_policy import policy

    one = policy(folders["sdar"], rule="threshold", threshold=0.6, eval_threshold=0.9)
    assert one.settings({}, greedy=True)[0].threshold == 0.9 and one.settings({}, greedy=False)[0].threshold == 0.6
    assert one.settings({"threshold": 0.7}, greedy=True)[0].threshold == 0.7
    assert policy(folders["sdar"], threshold=0.6).settings({}, greedy=True)[0].threshold == 0.6
