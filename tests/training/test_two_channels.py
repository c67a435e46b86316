"""Two channels trained in turns by the one trainer: phases, optimisers, shared advantage, resume, frozen halves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import config_io, families
from mmrl.core.objective import Objective
from mmrl.core.recipe import parse
from mmrl.core.streams import Streams
from mmrl.errors import UserError
from mmrl.recipes import read
from mmrl.selection.request import Request
from mmrl.training import checkpoint
from mmrl.training.batch import Scored, table_of
from mmrl.training.metrics import by_phase, untimed
from mmrl.training.policy import offered
from mmrl.training.run import train
from mmrl.training.setup import build_trainer
from mmrl.training.trainer import Trainer, _check_apart
from mmrl.training.update import Update, streaming_update

sys.path.insert(0, str(Path(__file__).parent))
from toy import records
from toy_two import TwoChannels

TURNS = ["tokens", "schedule"]
RATE = {"channels.schedule.optimiser.lr": 0.03}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    two = families.Family("toy-two", config="toy_two_config", entry="toy_two_family")
    monkeypatch.setitem(families.FAMILIES, "toy-two", two)
    monkeypatch.setitem(families.FAMILIES, "toy", families.Family("toy", config="toy_config", entry="toy_family"))


def config(out: Path, **sections: Any) -> Any:
    base: dict[str, Any] = {
        "family": "toy-two",
        "recipe": "co-grpo",
        "out": str(out),
        "data": {"train": "toy_two:train", "eval": "toy_two:eval"},
        "rewards": {"components": [{"name": "zeros-two"}]},
        "train": {"steps": 6, "prompts": 4, "group": 4},
        "optimiser": {"lr": 0.05},
        "recipe_options": RATE,
        "checkpoint": {"every": 1, "keep_last": 9},
        "eval": {"samples": 1},
        "log": {"tensorboard": False},
    }
    for key, value in sections.items():
        joined = isinstance(value, dict) and isinstance(base.get(key), dict) and key != "recipe_options"
        base[key] = {**base[key], **value} if joined else value
    return config_io.build(base, folder=Path.cwd())


def made(tmp_path: Path, **sections: Any) -> tuple[Trainer, TwoChannels]:
    trainer, policy, _ = build_trainer(config(tmp_path / "run", **sections), lambda line: None)
    assert isinstance(policy, TwoChannels)
    return trainer, policy


def weights(policy: TwoChannels) -> dict[str, list[Tensor]]:
    return {c: [p.detach().clone() for p in policy.parameters_of(c)] for c in policy.channels}


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- phases


@pytest.mark.parametrize(
    ("phases", "order"),
    [
        (None, TURNS * 3),
        ([["tokens", 2], ["schedule", 1]], ["tokens", "tokens", "schedule"] * 2),
        ([["schedule", 1], ["tokens", 2]], ["schedule", "tokens", "tokens"] * 2),
    ],
)
def test_a_phase_has_its_own_rollout_and_moves_its_channel_alone(
    tmp_path: Path, phases: list[Any] | None, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**RATE, "phases": phases} if phases else RATE
    steps = {"train": {"steps": 6, "prompts": 4, "group": 4}, "optimiser": {"lr": 0.05, "schedule": "linear"}}
    trainer, policy = made(tmp_path, recipe_options=options, **steps)
    assert {c: o.total for c, o in trainer.optimisers.items()} == {c: order.count(c) for c in TURNS}
    seen: list[Tensor] = []
    drawn = policy.rollout
    monkeypatch.setattr(policy, "rollout", lambda *a, **k: seen.append(out := drawn(*a, **k)) or out)
    done = dict.fromkeys(TURNS, 0)
    for step, channel in enumerate(order):
        before = weights(policy)
        values = trainer.step()
        now = weights(policy)
        other = TURNS[channel == "tokens"]
        assert values["phase"] == channel and len(seen) == step + 1
        assert not same(before[channel], now[channel]) and same(before[other], now[other])
        rate = {"tokens": 0.05, "schedule": 0.03}[channel]
        assert values["lr"] == pytest.approx(rate * (1 - done[channel] / order.count(channel)))
        done[channel] += 1
        assert values["decisions"] == (16 * 8 if channel == "tokens" else 16 * 2)
        assert values["sampler_gap"] < 1e-10 and values["ratio"] == 1
        assert {c: o.steps for c, o in trainer.optimisers.items()} == done
        assert all(p.grad is None for c in TURNS for p in policy.parameters_of(c))
    assert policy.updates == done["schedule"], "told of every step of its channel and of no other"


def test_turns_count_the_steps_of_a_channel() -> None:
    recipe = parse("x", read("co-grpo"), options={"phases": [["tokens", 2], ["schedule", 1]]})
    assert [recipe.turn(step, "tokens") for step in range(7)] == [0, 1, 0, 2, 3, 1, 4]
    alone = parse("x", read("grpo"))
    assert [alone.turn(step, "tokens") for step in range(4)] == [0, 1, 2, 3]


def test_looks_at_the_entropy_and_lines_of_the_log_are_counted_for_each_channel(tmp_path: Path) -> None:
    """Every second step of a run would be of one channel only."""
    run = train(config(tmp_path / "run", log={"entropy_every": 2, "every": 2}, train={"steps": 8}), progress=False)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    assert [(row["step"], row["phase"]) for row in rows] == [
        *((3, "tokens"), (4, "schedule"), (7, "tokens"), (8, "schedule"))
    ]
    trainer, _ = made(tmp_path, log={"entropy_every": 2})
    assert ["entropy" in trainer.step() for _ in range(6)] == [True, True, False, False, True, True]


def test_trackers_do_not_mix_phases() -> None:
    found = by_phase({"loss": 1.0, "reward": 2.0, "reward/zeros": 2.0, "seconds/step": 3.0, "lr": 0.1}, "schedule")
    assert list(found) == ["schedule/loss", "reward", "reward/zeros", "seconds/step", "schedule/lr"]


def test_gaussian_entropies_are_no_sign_of_trouble(tmp_path: Path) -> None:
    """Deviation 0.1: a negative entropy; gradient norms of one phase are not compared with those of the other."""
    trainer, policy = made(tmp_path, log={"entropy_every": 1})
    policy.updates = 99
    signs = [s.kind for _ in range(6) for s in trainer.step()["signs"]]
    assert not [kind for kind in signs if "entropy" in kind]
    assert {
        "tokens/grad_norm",
        "schedule/grad_norm",
        "tokens/entropy",
        "flat_groups",
    } <= trainer.diagnostics.series.keys()
    assert "schedule/entropy" not in trainer.diagnostics.series


# ---- what both share


def test_both_channels_have_one_advantage_and_flat_groups_have_none(tmp_path: Path) -> None:
    trainer, _ = made(tmp_path, train={"prompts": 6})
    scored = trainer._experience(Streams(0, 0))[0]
    tables = [o.prepare(table_of(scored, channel))["adv_nt"] for channel, o in trainer.objectives.items()]
    assert {t.shape for t in tables} == {(24, 8), (24, 2)}
    first, second = (t[:, 0] for t in tables)
    assert torch.equal(first, second) and (first != 0).sum() >= 12
    assert all(torch.equal(t, t[:, :1].expand_as(t)) for t in tables)
    flat = torch.tensor([r.id == "r1" for r in scored.rollouts.records])
    assert flat.sum() == 4 and (first[flat] == 0).all()


def test_without_variance_neither_channel_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toy_two_family.builtin", lambda name: records(2)[1:])
    trainer, policy = made(tmp_path, train={"prompts": 1, "group": 4})
    before = weights(policy)
    for channel in TURNS:
        values = trainer.step()
        assert values["flat_groups"] == 1 and values["grad_norm"] == 0 and values["phase"] == channel
    assert all(same(before[c], weights(policy)[c]) for c in TURNS)


def test_more_than_one_update_a_phase(tmp_path: Path) -> None:
    trainer, policy = made(tmp_path, train={"epochs": 2, "minibatches": 2})
    for channel in TURNS:
        values = trainer.step()
        assert values["updates"] == 4 and values["ratio"] != 1 and values["sampler_gap"] < 1e-10
        assert trainer.optimisers[channel].steps == 4
    assert policy.updates == 4


# ---- halves


def after(tmp_path: Path, steps: int, **sections: Any) -> tuple[TwoChannels, list[dict[str, Any]]]:
    trainer, policy = made(tmp_path, **sections)
    return policy, [trainer.step() for _ in range(steps)]


def test_with_a_frozen_schedule_the_token_phase_is_mask_grpo(tmp_path: Path) -> None:
    """Exploration off: one token step of co-grpo and one of mask-grpo give the same weights, bit for bit."""
    co, told = after(tmp_path, 1, sampling={"explore": False})
    mask, told_mask = after(tmp_path, 1, recipe="mask-grpo", recipe_options={})
    assert same(weights(co)["tokens"], weights(mask)["tokens"])
    assert untimed(told[0]) == untimed(told_mask[0])
    assert mask.updates == 0 and told_mask[0]["grad_norm"] > 0


def test_mask_grpo_and_schedule_grpo_train_one_half(tmp_path: Path) -> None:
    start = weights(TwoChannels(explore=False))
    for recipe, moved, still in (("mask-grpo", *TURNS), ("schedule-grpo", *reversed(TURNS))):
        options = RATE if moved == "schedule" else {}
        policy, told = after(tmp_path, 2, recipe=recipe, recipe_options=options)
        assert [row["phase"] for row in told] == [moved] * 2
        assert not same(start[moved], weights(policy)[moved]) and same(start[still], weights(policy)[still])


def test_the_schedule_learns_by_itself(tmp_path: Path) -> None:
    """Its means leave 0 in the direction of a higher reward, and the deviation falls with its updates alone."""
    policy, told = after(
        tmp_path, 20, recipe="schedule-grpo", train={"steps": 20, "prompts": 6, "group": 16}, model={"every": 15}
    )
    assert policy.deviation == pytest.approx(0.3) and policy.updates == 20
    assert float(policy.mean.detach().abs().max()) > 0.1
    assert all(row["sampler_gap"] < 1e-10 for row in told)


# ---- penalties


def test_penalties_of_either_channel(tmp_path: Path) -> None:
    """Tokens: k3 with a reference pass; schedule: its closed form, for which no weights are kept."""
    kl = {"channels.tokens.penalties.kl.coef": 0.1, "channels.schedule.penalties.kl.coef": 0.2}
    own = {k: v for k, v in kl.items() if "schedule" in k}
    for options, kept in (({}, []), (kl, ["schedule", "tokens"]), (own, ["schedule"])):
        trainer, policy = made(tmp_path, recipe_options=options)
        assert sorted(policy.kept_for) == kept and (policy.kept is not None) == ("tokens" in kept)
    trainer, policy = made(tmp_path, recipe_options={**kl, **RATE})
    assert trainer.objectives["tokens"].needs()["ref"] == {"logp_nt"}
    assert trainer.objectives["schedule"].needs()["ref"] == set()
    told = [trainer.step() for _ in range(4)]
    assert [row["kl"] == 0 for row in told] == [True, True, False, False]
    assert told[3]["kl"] == pytest.approx(0.03**2 / 0.72, rel=1e-4), "mean^2 / (2 sd^2) after one step of Adam"


def test_a_channel_offers_what_is_its_own() -> None:
    assert offered(TwoChannels, "tokens") == {"logp_nt", "entropy_nt"}
    assert offered(TwoChannels(), "schedule") == {"logp_nt", "entropy_nt", "kl_nt"}


def test_a_recipe_for_channels_that_a_family_lacks_is_refused(tmp_path: Path) -> None:
    toy = {"family": "toy", "data": {"train": "toy:train"}, "rewards": {"components": [{"name": "zeros"}]}}
    (tmp_path / "mine.yaml").write_text(
        "source: mine\nadvantage: grpo\ngate: ppo-clip\nreduce: token-mean\nphases: [[schedule, 1]]\n"
    )
    with pytest.raises(UserError, match="trains channel 'schedule', but this family has tokens"):
        build_trainer(config(tmp_path / "r", recipe=str(tmp_path / "mine.yaml"), recipe_options={}, **toy), pytest.fail)


def test_channels_that_share_a_parameter_are_refused() -> None:
    p = torch.zeros(1)
    with pytest.raises(ValueError, match="channels 'tokens' and 'schedule'"):
        _check_apart({"tokens": [p], "schedule": [torch.zeros(1), p]})


def test_a_gradient_that_reaches_the_other_channel_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, policy = made(tmp_path)
    logits = policy._logits
    monkeypatch.setattr(policy, "_logits", lambda *a: logits(*a) + policy.mean.sum() * a[0].sum())
    trainer.step()
    assert policy.mean.grad is None


# ---- resume


@pytest.mark.parametrize("phases", [[["tokens", 1], ["schedule", 1]], [["tokens", 2], ["schedule", 1]]])
def test_a_run_resumed_in_any_phase_is_the_same_run(tmp_path: Path, phases: list[Any]) -> None:
    """Weights, optimisers, averages, the deviation's count and the log; from each of the checkpoints."""
    options = {"recipe_options": {"phases": phases, **RATE}}
    sections = {**options, "ema": {"enabled": True, "decay": 0.9}, "train": {"steps": 5, "prompts": 4, "group": 4}}
    whole = train(config(tmp_path / "whole", **sections), progress=False)
    expected = checkpoint.read(checkpoint.step_folder(whole, 5))
    for stop in range(1, 5):
        out = tmp_path / f"stop{stop}"
        train(config(out, **{**sections, "train": {"steps": stop, "prompts": 4, "group": 4}}), progress=False)
        train(config(out, **sections), resume=True, progress=False)
        got = checkpoint.read(checkpoint.step_folder(out, 5))
        assert got.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(got.tensors[k], v) for k, v in expected.tensors.items()), stop
        for name in ("optimisers", "averages", "diagnostics"):
            assert got.state["trainer"][name] == expected.state["trainer"][name], (stop, name)
        assert told(out) == told(whole)
    assert {k.split("/")[1] for k in expected.tensors if k.startswith(("optimiser/", "average/"))} == set(TURNS)


def told(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times and without evaluations: the last step of a part has one more."""
    rows = [untimed(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in rows]


def test_averages_of_both_channels_are_swapped_in(tmp_path: Path) -> None:
    trainer, policy = made(tmp_path, ema={"enabled": True, "decay": 0.9})
    for _ in range(4):
        trainer.step()
    now = weights(policy)
    assert {c: a.updates for c, a in trainer.averages.items()} == {"tokens": 2, "schedule": 2}
    with trainer.averaged():
        inside = weights(policy)
    assert all(not same(now[c], inside[c]) and same(now[c], weights(policy)[c]) for c in TURNS)
    assert all(same(inside[c], trainer.averages[c].shadow) for c in TURNS)


# ---- pieces and segments


def update(cut: str, level: str, **options: Any) -> tuple[Update, list[Tensor]]:
    """The gradient in the tokens' weights after they have drifted from the sampler's."""
    policy = TwoChannels(cut=cut)
    rollouts = policy.rollout([Request(record=r, n=g) for r, g in zip(records(3), (3, 4, 2))], Streams(0, 0))
    reward = torch.arange(len(rollouts)).double().sin()
    scored = Scored(rollouts, reward[:, None], torch.ones(1).double(), ["sine"])
    dotted = {f"channels.tokens.{k.replace('__', '.')}": v for k, v in options.items()}
    recipe = parse("co-grpo", read("co-grpo"), options={"channels.tokens.gate.level": level, **dotted})
    objective = Objective(recipe, channel="tokens", unit="decision", provides=offered(policy, "tokens"))
    with torch.no_grad():
        policy.own += 0.4 * torch.arange(policy.own.numel()).double().reshape(policy.own.shape).sin()
    table = table_of(scored, "tokens")
    table = objective.prepare(table.updated({"old_logp_nt": table["sampler_logp_nt"]}))
    found = streaming_update(policy, objective, rollouts, table, channel="tokens")
    return found, [p.grad.clone() for p in policy.parameters_of("tokens")]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduce__inside": "sum"},
    {"reduce__counted": False},
    {"reduce__over": "sum", "reduce__counted": False},
]


@pytest.mark.parametrize("level", ["decision", "segment:step", "segment-sum:step", "row-sum"])
@pytest.mark.parametrize(("cut", "passes"), [("steps", 1), ("rows", 1), ("columns", 2)])
def test_pieces_of_steps_give_the_whole_graph_in_one_pass(level: str, cut: str, passes: int) -> None:
    """A ratio per segment needs a second pass only where pieces cut segments; one per row wherever they cut rows."""
    if level == "decision":
        passes = 1
    if level == "row-sum":
        passes = 1 if cut == "rows" else 2
    for options in OPTIONS:
        whole, expected = update("whole", level, **options)
        found, got = update(cut, level, **options)
        assert found.pieces > 1 and found.passes == passes
        assert found.loss == pytest.approx(whole.loss, abs=1e-12)
        for a, b in zip(got, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-10, rtol=0)
        for name, value in whole.stats.items():
            assert found.stats[name] == pytest.approx(value, abs=1e-10)
        assert max(float(g.abs().max()) for g in expected) > 1e-3


def test_levels_differ_and_the_product_is_literal() -> None:
    """mean over rows and steps of the surrogate of the product, written out."""
    policy = TwoChannels(cut="whole")
    losses = {level: update("whole", level)[0].loss for level in ("decision", "segment:step", "segment-sum:step")}
    assert len({round(v, 6) for v in losses.values()}) == 3
    rollouts = policy.rollout([Request(record=r, n=g) for r, g in zip(records(3), (3, 4, 2))], Streams(0, 0))
    with torch.no_grad():
        policy.own += 0.4 * torch.arange(policy.own.numel()).double().reshape(policy.own.shape).sin()
    new = policy._tokens(rollouts.rows, policy.bundles(rollouts, channel="tokens", update=0, scope="row")[0].pieces[0])
    difference = (new["logp_nt"] - rollouts.tables["tokens"]["sampler_logp_nt"]).detach()
    reward, prompt, total = torch.arange(9).double().sin(), rollouts.keys["prompt"], 0.0
    for i in range(9):
        own = reward[prompt == prompt[i]]
        adv = float((reward[i] - own.mean()) / (own.std(correction=0) + 1e-4))
        steps = rollouts.segments["tokens"]["step"][i]
        ratios = [float(difference[i][steps == t].sum().exp()) for t in range(3)]
        total -= sum(min(r * adv, min(max(r, 0.8), 1.2) * adv) for r in ratios) / 3
    assert losses["segment-sum:step"] == pytest.approx(total / 9, abs=1e-12)


def test_one_step_leaves_a_schedule_without_decisions(tmp_path: Path) -> None:
    """T = 1 has no action: tables of width 0 pass through every part of a step, tokens learn as ever."""
    trainer, policy = made(tmp_path, sampling={"steps": 1})
    told = [trainer.step() for _ in range(2)]
    assert [row["decisions"] for row in told] == [16 * 8, 0] and told[0]["grad_norm"] > 0
    assert told[1]["grad_norm"] == 0 and "sampler_gap" not in told[1]
