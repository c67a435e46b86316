"""Whole runs of the family on tiny random checkpoints: every recipe, resuming, imitation, what goes wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dlm.tasks.catalogue import builtin
from mmrl import config_io
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training import checkpoint
from mmrl.training.run import train
from mmrl.training.stored import evaluate_run
from mmrl.training.trainer import Trainer

TIMES = ("seconds", "tokens_per_s")
BASE: dict[str, Any] = {
    "family": "dlm",
    "recipe": "gdpo-diffusion",
    "threads": 1,
    "model": {"autocast": "off"},
    "sampling": {"max_new_tokens": 8, "block": 4, "steps": 4, "temperature": 1.0},
    "data": {"train": "sort:train?k=3&n=24", "eval": "sort:eval?k=3&n=6"},
    # digits at all, which even a random model now and then writes; right answers it does not
    "rewards": {"components": [{"name": "dlm-some-digits", "success": 0.1}, {"name": "tpf", "weight": 0.1}]},
    "train": {"steps": 4, "prompts": 3, "group": 4, "epochs": 2},
    "optimiser": {"lr": 1e-3},
    "eval": {"metric": "reward"},
    "checkpoint": {"every": 2},
    "log": {"tensorboard": False},
}
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
        {"recipe": "lightningrl", "sampling": {"threshold": 0.02, "cache": "block"}, "train": {"minibatches": 1}},
    ),
    "lightningrl-llada": (
        "llada",
        {"recipe": "lightningrl", "sampling": {"threshold": 0.02}, "train": {"minibatches": 1}},
    ),
    "lora": ("llada", {"model": {"adapter": {"kind": "lora", "rank": 4, "alpha": 8.0}}}),
}


@pytest.fixture(autouse=True)
def some_digits() -> None:
    from mmrl.rewards import registry

    @registry.reward("dlm-some-digits", tasks=())
    def some(outputs: Any, records: Any, info: Any) -> list[float]:
        return [sum(c.isascii() and c.isalnum() for c in o) / 8 for o in outputs]


def config(out: Path, folder: Path, **changes: Any) -> Any:
    raw = copy.deepcopy(BASE) | {"out": str(out)}
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and isinstance(raw.get(key), dict) else value
    raw["model"] = {"path": str(folder)} | raw["model"]
    return config_io.build(raw, folder=Path.cwd())


def lines(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.folders(run)[-1] / "trainable.safetensors")


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


def test_settings_that_cannot_work_together_are_refused_before_weights_load(tmp_path: Path) -> None:
    from dlm.check import check

    for change, message in (
        (
            {"sampling": {"cache": "dual"}, "recipe": "lightningrl", "train": {"minibatches": 1}},
            "sampling.cache: dual is approximate",
        ),
        ({"sampling": {"steps": 9}}, "sampling.steps: 9 steps for 8 positions"),
        ({"sampling": {"temperature": 0}}, "sampling.temperature: 0 makes all samples of a group alike"),
        ({"inputs": {"eval_thresholds": [2.0]}}, "inputs.eval_thresholds: 2 is not between 0 and 1"),
        ({"sampling": {"likelihood": {"name": "sdmc", "options": {"rule": "gaus-3"}}}}, "gauss-3"),
    ):
        made = config(tmp_path / "run", Path("somewhere"), model={"path": "nobody/nothing"}, **change)
        with pytest.raises(UserError, match=message):
            check(made)


def test_held_out_records_may_be_decoded_at_another_threshold(folders: dict[str, Path]) -> None:
    from tiny_policy import policy

    one = policy(folders["sdar"], rule="threshold", threshold=0.6, eval_threshold=0.9)
    assert one.settings({}, greedy=True)[0].threshold == 0.9 and one.settings({}, greedy=False)[0].threshold == 0.6
    assert one.settings({"threshold": 0.7}, greedy=True)[0].threshold == 0.7
    assert policy(folders["sdar"], threshold=0.6).settings({}, greedy=True)[0].threshold == 0.6
