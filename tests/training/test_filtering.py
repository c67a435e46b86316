"""Groups that a selector leaves out: refilled a bounded number of times, a step without any left is skipped."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from mmrl import config_io, families
from mmrl.config import Rewards, RewardSpec
from mmrl.errors import UserError
from mmrl.rewards.registry import reward
from mmrl.rewards.score import Scorer
from mmrl.training import checkpoint
from mmrl.training.batch import Scored, shuffle_inside_groups, table_of
from mmrl.training.run import train

sys.path.insert(0, str(Path(__file__).parent))
FREE = {"penalties": []}
TWO = [{"name": "zeros", "success": 0.5}, {"name": "half-of-them", "weight": 0.5}]


@reward("half-of-them", tasks=("toy",))
def half_of_them(outputs, records, info):
    """Differs inside a group for records of an odd number only."""
    return [float(row["sample"]) if int(r.id[1:]) % 2 else 1.0 for r, row in zip(records, info, strict=True)]


@reward("never", tasks=("toy",))
def never(outputs, records, info):
    return [0.25] * len(outputs)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "toy", families.Family("toy", config="toy_config", entry="toy_family"))


def config(out: Path, **sections):
    base = {
        "family": "toy",
        "recipe": "grpo",
        "recipe_options": FREE,
        "out": str(out),
        "data": {"train": "toy:train", "eval": "toy:eval", "shuffle": False},
        "rewards": {"components": TWO},
        "selection": {"name": "filtered", "options": {"spread": {"half-of-them": 1.0}}},
        "train": {"steps": 3, "prompts": 4, "group": 4},
        "optimiser": {"lr": 0.1},
        "log": {"tensorboard": False},
    }
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return config_io.build(base, folder=Path.cwd())


def steps(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]


def test_groups_are_left_out_and_counted(tmp_path: Path) -> None:
    """Records r0 .. r5 in order: of r0 r1 r2 r3 two pass, then of r4 r5 r0 r1, ..."""
    rows = steps(train(config(tmp_path / "run"), progress=False))
    assert [(r["filtered_groups"], r["rows"], r["resample_rounds"], r["updates"]) for r in rows] == [(2, 8, 0, 1)] * 3
    assert "resampled_groups" not in rows[0]


def test_left_out_groups_are_refilled_up_to_the_limit(tmp_path: Path) -> None:
    """Step 1: r0 r1 r2 r3 -> 2 missing; r4 r5 -> 1 missing; r0 -> still 1 missing, and the two rounds are used up."""
    options = {"spread": {"half-of-them": 1.0}, "refill_rounds": 2}
    run = train(config(tmp_path / "run", selection={"options": options}, train={"steps": 1}), progress=False)
    (row,) = steps(run)
    assert (row["filtered_groups"], row["resample_rounds"], row["rows"]) == (4, 2, 12)
    state = checkpoint.read(checkpoint.step_folder(run, 1)).state["trainer"]
    assert state["selector"] == {"drawn": 7}
    more = {**options, "refill_rounds": 9}  # r1 passes in the third round: nothing is missing any more
    (row,) = steps(train(config(tmp_path / "more", selection={"options": more}, train={"steps": 1}), progress=False))
    assert (row["filtered_groups"], row["resample_rounds"], row["rows"]) == (4, 3, 16)


def test_one_mechanism_refills_for_both_reasons(tmp_path: Path) -> None:
    """resample: groups without variance, filtered: the selector's; each is counted where it belongs."""
    c = config(
        tmp_path / "run",
        rewards={"components": [{"name": "half-of-them"}, {"name": "never", "weight": 0.0}]},
        selection={"options": {"spread": {"never": 0.0}}},
        train={"steps": 1, "zero_variance": "resample", "resample_rounds": 1},
    )
    (row,) = steps(train(c, progress=False))
    assert (row["filtered_groups"], row["resampled_groups"], row["resample_rounds"], row["rows"]) == (0, 3, 1, 12)
    both = config(
        tmp_path / "both",
        rewards={"components": [{"name": "half-of-them"}]},
        train={"steps": 1, "zero_variance": "resample", "resample_rounds": 1},
    )
    (row,) = steps(train(both, progress=False))  # what the selector left out is not counted twice
    assert (row["filtered_groups"], row["resampled_groups"], row["resample_rounds"], row["rows"]) == (3, 0, 1, 12)


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_step_without_any_group_is_skipped_and_several_end_the_run(tmp_path: Path, rounds: int) -> None:
    nothing = {"name": "filtered", "options": {"spread": {"half-of-them": 99.0}, "refill_rounds": rounds}}
    run = train(config(tmp_path / "run", selection=nothing, train={"steps": 3}), progress=False)
    for row in steps(run):
        assert (row["updates"], row["rows"], row["resample_rounds"]) == (0, 0, rounds)
        assert row["filtered_groups"] == 4 * (1 + rounds)
    before, after = (json.loads((run / "summary.json").read_text())[k] for k in ("before", "after"))
    assert before == after
    with pytest.raises(UserError, match="no group passed selection 'filtered' in 2 steps, refills included"):
        train(config(tmp_path / "end", selection=nothing, train={"steps": 9, "max_bad_steps": 2}), progress=False)


def test_a_good_step_between_starts_the_count_anew(tmp_path: Path) -> None:
    """One prompt a step, records in order: every second step is empty, and the run goes on."""
    rows = steps(train(config(tmp_path / "run", train={"steps": 6, "prompts": 1, "max_bad_steps": 2}), progress=False))
    assert [row["updates"] for row in rows] == [0, 1] * 3


def test_a_run_resumes_in_the_middle(tmp_path: Path) -> None:
    options = {"spread": {"half-of-them": 1.0}, "need_correct": True, "refill_rounds": 2}
    own = {"selection": {"options": options}, "checkpoint": {"every": 2}}
    whole = steps(train(config(tmp_path / "whole", train={"steps": 4}, **own), progress=False))
    train(config(tmp_path / "cut", train={"steps": 2}, **own), progress=False)
    cut = steps(train(config(tmp_path / "cut", train={"steps": 4}, **own), progress=False, resume=True))
    for a, b in zip(whole, cut, strict=True):
        timed = ("seconds", "tokens_per_s")
        assert {k: v for k, v in a.items() if not k.startswith(timed) and not k.startswith("eval/")} == {
            k: v for k, v in b.items() if not k.startswith(timed) and not k.startswith("eval/")
        }


# ---- which answers are right


def test_right_answers_reach_the_table() -> None:
    from toy import ToyPolicy, records

    from mmrl.core.streams import Streams
    from mmrl.selection.request import Request

    rollouts = ToyPolicy().rollout([Request(record=r, n=2) for r in records(2, seed=0)], Streams(0, 0))
    nan = float("nan")
    reward_nk = torch.tensor([[0.5, 9.0], [0.49, 9.0], [nan, 9.0], [1.0, nan]], dtype=torch.float64)
    weight_k = torch.tensor([-2.0, 1.0], dtype=torch.float64)  # the raw value counts, whatever the weight
    scored = Scored(rollouts, reward_nk, weight_k, ["exact", "tpf"])
    assert scored.correct_n is None and "correct_n" not in table_of(scored, "tokens")
    scored.success = {"exact": 0.5}
    assert table_of(scored, "tokens")["correct_n"].tolist() == [True, False, False, True]
    picked = scored.select(torch.tensor([3, 1]))
    assert picked.correct_n is not None and picked.correct_n.tolist() == [True, False]
    both = Scored.concat([picked, scored])
    assert both.correct_n is not None and both.correct_n.tolist() == [True, False, True, False, False, True]
    scored.success = {"exact": 0.5, "tpf": 9.0}  # a reward of several columns: all that apply
    assert scored.correct_n is not None and scored.correct_n.tolist() == [True, False, True, True]
    shuffled = shuffle_inside_groups(scored, Streams(0, 0))
    assert shuffled.success == scored.success
    moved = Scored(rollouts, shuffled.reward_nk, weight_k, scored.names, success=scored.success)
    assert torch.equal(shuffled.correct_n, moved.correct_n)  # type: ignore[arg-type]


def test_the_mark_follows_the_columns_of_its_component() -> None:
    components = [RewardSpec(name="never"), RewardSpec(name="zeros", success=0.5), RewardSpec(name="never")]
    assert Scorer(Rewards(components=components)).success == {"zeros": 0.5}
    assert Scorer(Rewards(components=components[:1])).success == {}
    components[2].success, components[1].success = 1.0, None
    assert Scorer(Rewards(components=components)).success == {"never_2": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rewards": {"components": [{"name": "zeros"}]}, "selection": {"name": "uniform", "options": {}}},
            "recipe grpo: stage 'nll' needs to know which answers are right",
        ),
        (
            {"rewards": {"components": [{"name": "half-of-them"}]}, "recipe_options": FREE}
            | {"selection": {"options": {"need_correct": True}}},
            "selection.options.need_correct: no reward component says which answers are right",
        ),
        ({"selection": {"options": {"spread": {"zeroes": 1.0}}}}, "no reward component 'zeroes' in this run; did you"),
        (
            {"rewards": {"components": [{"name": "zeros", "success": 1}, {"name": "never", "success": 1}]}},
            "rewards.components: success is set for zeros, never; one component says what is right",
        ),
        ({"eval": {"judges": [{"name": "zeros", "success": 1}]}}, "eval.judges.0.success: nothing is trained on"),
        (
            {"recipe": "sft", "recipe_options": {}, "train": {"group": 1}},
            "no reward component 'half-of-them' in this run",
        ),
    ],
)
def test_refused_before_weights_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, message: str
) -> None:
    import toy_family

    def load(config):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(toy_family, "load_policy", load)
    nll = {"penalties": [{"name": "nll", "coef": 0.1, "reduce": "token-mean-correct"}]}
    with pytest.raises(UserError) as caught:
        train(config(tmp_path / "run", **{"recipe_options": nll, **change}), progress=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_dry_run_tells_the_same(tmp_path: Path) -> None:
    from mmrl.cli.preflight import problems

    nll = {"penalties": [{"name": "nll", "coef": 0.1, "reduce": "token-mean-correct"}]}
    assert problems(config(tmp_path / "good", recipe_options=nll)) == []
    unmarked = config(tmp_path / "bad", recipe_options=nll, rewards={"components": [{"name": "half-of-them"}]})
    (line,) = problems(unmarked)
    assert "stage 'nll' needs to know which answers are right" in line


def test_nll_trains_on_right_rows_without_any_advantage(tmp_path: Path) -> None:
    """All advantages silenced, only the NLL acts: the share of right answers rises."""
    options = {
        "advantage": "dr-grpo",
        "penalties": [{"name": "nll", "coef": 1.0, "reduce": "token-mean-correct"}],
    }
    c = config(
        tmp_path / "run",
        recipe_options=options,
        rewards={"components": [{"name": "zeros", "success": 0.6, "weight": 0.0}, {"name": "never"}]},
        selection={"name": "uniform", "options": {}},
        train={"steps": 60},
    )
    run = train(c, progress=False)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["after"]["reward"] > summary["before"]["reward"] + 0.15
    assert any(row["loss/nll"] != 0 for row in steps(run)) and all(row["loss/policy"] == 0 for row in steps(run))


# ---- the recipe's own selection


def test_the_recipes_selection_stands_below_the_runs_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "title: x\nsource: x\nadvantage: grpo\ngate: ppo-clip\nreduce: token-mean\n"
        "selection: {name: filtered, options: {spread: {zeros: 0.5}, refill_rounds: 3}}\n"
    )

    def selection(own):
        base = {"family": "toy", "recipe": "mine.yaml", "data": {"train": "toy:train"}, "selection": own}
        found = config_io.build(base, folder=tmp_path).selection
        return found.name, found.options

    default = {"spread": {"zeros": 0.5}, "refill_rounds": 3}
    assert selection(None) == selection({}) == selection({"name": "filtered"}) == ("filtered", default)
    assert selection({"options": {"refill_rounds": 0}}) == ("filtered", {**default, "refill_rounds": 0})
    assert selection({"options": {"spread": {"zeros": 0.1}}})[1]["spread"] == {"zeros": 0.1}
    assert selection({"name": "uniform"}) == ("uniform", {})
    with pytest.raises(UserError, match="selection: unknown key 'optoins'|selection.optoins"):
        selection({"optoins": {}})
    with pytest.raises(UserError, match="set selection.name in the run itself"):
        base = {"family": "toy", "recipe": "mine.yaml", "data": {"train": "toy:train"}}
        config_io.build({**base, "recipe_options": {"selection.name": "uniform"}}, folder=tmp_path)
