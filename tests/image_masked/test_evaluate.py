"""Metrics over decoding steps with both schedules, what is sampled for them, and one evaluation against the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_tokens

from image_gen.diversity import pixel_diversity
from image_gen.evaluate import measure
from image_gen.masked.evaluate import compared, evaluate, first_look
from image_gen.masked.policy import MaskedPolicy
from mmrl import config_io, families
from mmrl.config import Config
from mmrl.core.streams import Streams
from mmrl.report import write_report
from mmrl.training.rollouts import Request, Rollouts
from mmrl.training.run import train

RECORDS = toy_tokens.builtin("toy:eval")
BASE2, LEARNED2, BASE4, LEARNED4 = (
    {"steps": k, "schedule": schedule} for k in (2, 4) for schedule in ("base", "learned")
)


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    own = families.Family("toy-masked", config="image_gen.masked.config", entry="toy_tokens")
    monkeypatch.setitem(families.FAMILIES, "toy-masked", own)


def config_of(out: Path = Path("run"), **sections: Any) -> Config:
    return config_io.build(toy_tokens.settings(out, **sections), folder=Path.cwd())


def moved(policy: MaskedPolicy) -> MaskedPolicy:
    """Far from the hand-made schedule."""
    with torch.no_grad():
        for parameter in policy.parameters_of("schedule"):
            parameter.add_(torch.tensor([1.0, -1.0, 2.0, 2.0]))
    assert not policy.schedule.at_base
    return policy


class Watched:
    """A policy whose rollouts are noted: `asked`, the overrides of each call's requests and the pictures of each."""

    def __init__(self, policy: MaskedPolicy) -> None:
        self.policy, self.asked = policy, []

    def rollout(self, requests: Any, streams: Streams, *, greedy: bool = False) -> Rollouts:
        assert greedy and vars(streams) == vars(Streams(0, 0, "eval"))
        assert len({(json.dumps(r.sampling), r.n) for r in requests}) == 1 and len(requests) == len(RECORDS)
        self.asked.append((requests[0].sampling, requests[0].n))
        return self.policy.rollout(requests, streams, greedy=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)


def looked(config: Config, *, far: bool = False) -> tuple[dict[str, float], list[tuple[dict[str, Any], int]]]:
    policy = toy_tokens.load_policy(config)
    watched = Watched(moved(policy) if far else policy)
    return evaluate(watched, RECORDS, config), watched.asked


def test_the_hand_made_schedule_is_the_learned_one_before_it_moved() -> None:
    metrics, asked = looked(config_of())
    assert asked == [({}, 3), (LEARNED2, 3)]  # four steps are what the plain evaluation takes
    names = [f"{prefix}{name}@{k}" for k in (2, 4) for prefix in ("", "base/") for name in ("judge", "diversity")]
    assert list(metrics) == ["reward", "judge", "diversity", *names]
    assert metrics["judge@4"] == metrics["judge"] and metrics["diversity@4"] == metrics["diversity"]
    for k in (2, 4):
        assert metrics[f"base/judge@{k}"] == metrics[f"judge@{k}"]
    assert metrics["judge@2"] != metrics["judge@4"]


def test_a_schedule_that_moved_is_compared_with_the_hand_made_one() -> None:
    start, _ = looked(config_of())
    metrics, asked = looked(config_of(), far=True)
    assert asked == [({}, 3), (LEARNED2, 3), (BASE2, 3), (BASE4, 3)]
    for name in ("judge", "diversity"):  # the same weights and the same noise
        assert [metrics[f"base/{name}@{k}"] for k in (2, 4)] == [start[f"{name}@{k}"] for k in (2, 4)]
        assert metrics[f"{name}@2"] != start[f"{name}@2"]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"inputs": {"curve_images": 2}}, [({}, 3), (LEARNED2, 2), (LEARNED4, 2)]),
        ({"sampling": {"eval_steps": 2}}, [({}, 3), (LEARNED4, 3)]),
        ({"sampling": {"eval_steps": 3}}, [({}, 3), (LEARNED2, 3), (LEARNED4, 3)]),
        ({"inputs": {"curve_steps": [4, 2, 4]}}, [({}, 3), (LEARNED2, 3)]),
        ({"inputs": {"curve_steps": []}}, [({}, 3)]),
    ],
)
def test_what_is_sampled(sections: dict[str, Any], expected: list[Any]) -> None:
    assert looked(config_of(**sections))[1] == expected


def test_the_numbers_are_those_of_the_pictures() -> None:
    config = config_of(inputs={"curve_images": 2})
    policy = moved(toy_tokens.load_policy(config))
    metrics = evaluate(policy, RECORDS, config)
    for prefix, schedule in (("", "learned"), ("base/", "base")):
        requests = [Request(r, 2, sampling={"steps": 2, "schedule": schedule}) for r in RECORDS]
        found = policy.rollout(requests, Streams(0, 0, "eval"), greedy=True)
        half = sum(float(picture[:, :, :2].mean()) for picture in found.outputs) / len(found)
        assert metrics[f"{prefix}judge@2"] == pytest.approx(half)
        spread = float(pixel_diversity(torch.stack(found.outputs), found.keys["prompt"]))
        assert metrics[f"{prefix}diversity@2"] == pytest.approx(spread)


def test_what_such_an_evaluation_cannot_tell() -> None:
    config = config_of(inputs={"curve_images": 1}, eval={"judges": []})
    policy = Watched(toy_tokens.load_policy(config))
    metrics, told = first_look(policy, RECORDS, config)
    assert set(metrics) == {"reward", "diversity"} and policy.asked == [({}, 3)]  # nothing would be left to measure
    assert len(told) == 2 and "eval.judges" in told[0] and "inputs.curve_images" in told[1]
    assert first_look(policy, RECORDS, config_of())[1] == []
    assert measure(policy, RECORDS, config, images=1, trained=False) == {}


START = {"judge": 0.5, "judge@2": 0.25, "judge@4": 0.375, "judge@8": 0.5, "judge@16": 0.5625, "base/judge@2": 0.9}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({"judge@2": 0.25, "judge@4": 0.5, "judge@8": 0.75}, 4),
        ({"judge@16": 0.5, "judge@4": 0.49, "judge@8": 0.6}, 8),
        ({"judge@2": 0.5, "judge@4": 0.1}, 2),  # the smallest that reaches it, whatever follows
        ({"judge@2": 0.25, "judge@16": 0.49, "base/judge@2": 0.9}, None),
        ({"judge@2": float("nan")}, None),
    ],
)
def test_steps_to_the_quality_of_the_start(after: dict[str, float], expected: int | None) -> None:
    first, last = compared(START, after)
    assert first == START | {"steps_to_base_quality": 8}
    assert last.pop("steps_to_base_quality") == expected and last.keys() == after.keys()


def test_a_start_without_eight_steps_is_its_plain_judge() -> None:
    start = {"judge": 0.5, "judge@2": 0.375, "judge@4": 0.4375}
    first, last = compared(start, {"judge": 0.75, "judge@2": 0.5, "judge@4": 0.75})
    assert (first["steps_to_base_quality"], last["steps_to_base_quality"]) == (None, 2)


@pytest.mark.parametrize("metrics", [{"judge": 0.5}, {"reward": 0.5, "diversity@2": 0.25}])
def test_without_a_curve_or_a_judge_there_is_no_such_number(metrics: dict[str, float]) -> None:
    assert compared(metrics, metrics) == (metrics, metrics)


@pytest.mark.parametrize("kind", ["table", "net"])
def test_a_run_stores_all_of_it_and_its_page_shows_it(tmp_path: Path, kind: str) -> None:
    model = {"schedule": {"kind": kind}}
    rate = {"channels.schedule.optimiser.lr": 1e-3}
    config = config_of(
        tmp_path / "run", train={"steps": 2}, sampling={"explore": True}, model=model, recipe_options=rate
    )
    run = train(config, progress=False)
    summary = json.loads((run / "summary.json").read_text())
    names = {"reward", "judge", "diversity", "judge@2", "base/diversity@4", "steps_to_base_quality"}
    for side in ("before", "after"):
        assert names <= summary[side].keys()
    assert compared(summary["before"], summary["after"]) == (summary["before"], summary["after"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["eval/judge@2"] == summary["before"]["judge@2"] and "eval/steps_to_base_quality" not in lines[0]
    (row, *_) = [json.loads(line) for line in (run / "samples" / "step-000002.jsonl").read_text().splitlines()]
    assert len(row["filling"]) == len(row["images"]) == 4
    assert all((run / "samples" / name).is_file() for name in row["filling"])
    first, last = (json.loads((run / "samples" / f"profiles-step-00000{s}.json").read_text()) for s in (0, 2))
    assert list(first) == ["ratio", "remask", "sample", "guidance"]
    for name, profile in first.items():
        assert profile["x"] == [0.25, 0.5, 0.75, 1.0] and profile["spread"] == [0.0] * 4
        assert profile["mean"] == profile["base"] == last[name]["base"]
        assert last[name]["mean"][3] == last[name]["base"][3]  # no action at the last step
    assert any(last[name]["mean"] != last[name]["base"] for name in last)
    moved = any(any(last[name]["spread"]) for name in last)
    assert moved == (kind == "net")  # a table knows no canvas
    html = write_report([run], tmp_path / "page.html").read_text()
    for shown in ('id="decoding-judge"', 'id="decoding-diversity"', 'id="profile-3"', "How it was filled", "None seen"):
        assert shown in html
