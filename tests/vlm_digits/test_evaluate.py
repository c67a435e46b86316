"""Metrics with literal numbers, and chance levels against brute force."""

from typing import Any

import pytest
import torch

from mmrl.config import Config, Data
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.training.rollouts import Rollouts
from mmrl.vlm.config import Sampling
from mmrl.vlm.evaluate import chance, evaluate, task_metrics


def record(task: str, answer: Any, name: str = "r") -> Record:
    return Record(id=name, task=task, prompt="?", answer=answer)


def say(text: str) -> str:
    return f"<think>a</think><answer>{text}</answer>"


BOX = [{"Position": [0, 0, 100, 100], "Confidence": 1.0}]


def config() -> Config:
    return Config(family="vlm", recipe="grpo", data=Data(train="digits:train"), sampling=Sampling(batch_rows=2))


class Parrot:
    """Answers by record id; remembers how it was asked."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.calls: list[tuple[int, bool, str]] = []

    def rollout(self, requests: Any, streams: Any, *, greedy: bool = False) -> Rollouts:
        self.calls.append((len(requests), greedy, streams.purpose))
        assert all(r.n == 1 for r in requests)
        n = len(requests)
        table = {"mask_nt": torch.ones(n, 1, dtype=torch.bool), "sampler_logp_nt": torch.zeros(n, 1)}
        return Rollouts(
            rows=[None] * n,
            records=[r.record for r in requests],
            outputs=[self.answers[r.record.id] for r in requests],
            info=[{"length": 1, "finished": True, "sample": 0}] * n,
            keys={"prompt": torch.arange(n)},
            tables={"tokens": table},
        )


def test_detection_counts_records_with_one_box() -> None:
    outputs = [
        say("[{'Position': [0, 0, 100, 60], 'Confidence': 0.9}]"),  # IoU 0.6
        say("[{'Position': [0, 0, 100, 50], 'Confidence': 0.9}]"),  # IoU 0.5: not above one half
        say("No Objects"),  # 0
        say("[{'Position': [0, 0, 9, 9], 'Confidence': 0.5}, {'Position': [0, 0, 100, 100], 'Confidence': 0.9}]"),  # 1
        say("[{'Position': [0, 0, 100, 100], 'Confidence': 0.9}]"),  # two to find: not counted
    ]
    records = [record("detection", BOX)] * 4 + [record("detection", BOX * 2)]
    found = task_metrics(outputs, records)
    assert found["mean_iou"] == pytest.approx((0.6 + 0.5 + 0 + 1) / 4)
    assert found["acc_50"] == 0.5
    assert "no_objects" not in found and "classification" not in found


def test_the_other_tasks() -> None:
    outputs = [say("7"), say("1"), say("2"), say("(0,0),(100,50)"), say("nowhere")]
    records = [
        record("classification", "7"),
        record("classification", "7"),
        record("counting", "2"),
        record("grounding", [0, 0, 100, 100]),
        record("grounding", [0, 0, 100, 100]),
    ]
    assert task_metrics(outputs, records) == {"classification": 0.5, "counting": 1.0, "grounding": 0.25}


def test_no_objects_is_balanced() -> None:
    """Always saying so is right on the one empty record and wrong on the three others: one half, as for a coin."""
    records = [record("detection", [])] + [record("detection", BOX)] * 3
    assert task_metrics([say("No Objects")] * 4, records)["no_objects"] == 0.5
    told = [say("No Objects")] + [say("[{'Position': [0, 0, 9, 9], 'Confidence': 0.9}]")] * 3
    assert task_metrics(told, records)["no_objects"] == 1.0


def test_evaluate_asks_greedily_in_batches_and_averages_the_reward() -> None:
    answers = {"a": say("7"), "b": say("1"), "c": "7"}
    records = [record("classification", "7", name) for name in answers]
    policy = Parrot(answers)
    found = evaluate(policy, records, config())  # type: ignore[arg-type]
    assert policy.calls == [(2, True, "eval"), (1, True, "eval")]
    # label + format: 1 + 1, 0 + 1, 1 + 0 (the bare answer is right, its form is not)
    assert found == {"classification": pytest.approx(2 / 3), "reward": pytest.approx(4 / 3)}


def test_evaluate_without_records() -> None:
    with pytest.raises(UserError, match="no records"):
        evaluate(Parrot({}), [], config())  # type: ignore[arg-type]


def test_chance_is_the_best_constant_answer() -> None:
    left, right = [0, 0, 100, 100], [900, 900, 1000, 1000]
    records = [record("detection", [{"Position": left}])] * 3 + [record("detection", [{"Position": right}])]
    records += [record("detection", [])] * 2
    records += [record("classification", x) for x in "7712"] + [record("counting", n) for n in (1, 2, 2)]
    levels = chance(records, config())
    assert levels["mean_iou"] == 0.75 and levels["acc_50"] == 0.75
    assert levels["classification"] == 0.5 and levels["counting"] == pytest.approx(2 / 3)
    assert levels["no_objects"] == 0.5
    # detection: the box at the left, certain: 3 of 6 records earn IoU 1 + confidence 1; all earn the format
    assert levels["reward"] == pytest.approx((6 * 1 + 3 * 2 + 4 * 1 + 2 + 3 * 1 + 2) / 13)


def test_chance_knows_no_constant_for_a_task_of_the_users_own() -> None:
    assert chance([record("haiku", "x")], config()) == {}
