"""Running statistics of prompts: DDPO's rules by hand, against a plain loop, and through a checkpoint."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict

import numpy as np
import pytest
import torch

from mmrl.core.registry import bind
from mmrl.core.table import Table
from mmrl.errors import UserError
from mmrl.training.prompt_statistics import PromptStatistics


def told(tracker: PromptStatistics, ids: str, rewards: list[float]) -> tuple[list[float], list[float]]:
    mean_n, std_n = tracker.update(list(ids), torch.tensor(rewards, dtype=torch.float64))
    return mean_n.tolist(), std_n.tolist()


def test_by_hand() -> None:
    """Buffer 3, two rewards needed. At first b has one, so it takes the batch's; then a's oldest leaves."""
    tracker = PromptStatistics(buffer=3, min_count=2)
    mean, std = told(tracker, "aba", [1.0, 4.0, 3.0])
    assert mean == pytest.approx([2.0, 8 / 3, 2.0]) and std == pytest.approx([1.0, math.sqrt(14 / 9), 1.0])
    mean, std = told(tracker, "aab", [5.0, 7.0, 0.0])
    assert tracker.count("a") == 3 and tracker.count("b") == 2 and tracker.count("c") == 0
    assert mean == pytest.approx([5.0, 5.0, 2.0])  # a: 3, 5, 7; b: 4, 0
    assert std == pytest.approx([math.sqrt(8 / 3), math.sqrt(8 / 3), 2.0])


def test_against_a_plain_loop() -> None:
    """Every step of 30: the last 8 rewards of a prompt once there are 4 of them, else those of the step."""
    rng = random.Random(0)
    tracker, kept = PromptStatistics(buffer=8, min_count=4), defaultdict(list)
    batch_only = 0
    for _ in range(30):
        ids = [rng.choice("abcdefgh") for _ in range(6)]
        rewards = [rng.gauss(0, 1) for _ in ids]
        for one, reward in zip(ids, rewards):
            kept[one] = [*kept[one], reward][-8:]
        mean_n, std_n = tracker.update(ids, torch.tensor(rewards, dtype=torch.float64))
        assert mean_n.dtype == std_n.dtype == torch.float64
        for i, one in enumerate(ids):
            own = kept[one] if len(kept[one]) >= 4 else rewards
            batch_only += len(kept[one]) < 4
            assert mean_n[i].item() == pytest.approx(np.mean(own)) and std_n[i].item() == pytest.approx(np.std(own))
    assert 0 < batch_only < 90


def test_rewards_that_are_missing_are_left_out() -> None:
    tracker = PromptStatistics(buffer=4, min_count=2)
    mean, std = told(tracker, "aaab", [1.0, math.nan, 3.0, math.inf])
    assert mean == pytest.approx([2.0, 2.0, 2.0, 2.0]) and std == pytest.approx([1.0] * 4)
    assert tracker.count("a") == 2 and tracker.count("b") == 0
    assert told(PromptStatistics(), "ab", [math.nan, math.nan]) == ([0.0, 0.0], [0.0, 0.0])
    assert told(PromptStatistics(), "", []) == ([], [])


def test_equal_rewards_have_deviation_zero_and_advantage_zero() -> None:
    tracker = PromptStatistics(buffer=32, min_count=16)
    reward_n = torch.full((20,), 0.1, dtype=torch.float64)
    mean_n, std_n = tracker.update(["a"] * 20, reward_n)
    table = Table({"reward_n": reward_n, "prompt_mean_n": mean_n, "prompt_std_n": std_n})
    assert bind("advantage", "tracked")(table).abs().max() < 1e-9


def test_a_resumed_tracker_goes_on_alike() -> None:
    """Through JSON: the state is plain, and float64 survives."""
    rng = random.Random(1)
    first = PromptStatistics(buffer=5, min_count=2)
    for _ in range(4):
        told(first, "abca", [rng.gauss(0, 1) for _ in range(4)])
    state = json.loads(json.dumps(first.state_dict()))
    second = PromptStatistics(buffer=5, min_count=2)
    second.load_state_dict(state)
    assert second.state_dict() == first.state_dict()
    for _ in range(4):
        rewards = [rng.gauss(0, 1) for _ in range(4)]
        assert told(first, "abdd", rewards) == told(second, "abdd", rewards)
    told(second, "a", [1.0])
    assert len(state["rewards"]["a"]) == 5, "the state does not change with the tracker"


def test_a_state_kept_otherwise_is_refused() -> None:
    state = PromptStatistics(buffer=16, min_count=16).state_dict()
    with pytest.raises(UserError, match="the checkpoint has buffer 16, this run 32; resume with the same"):
        PromptStatistics(buffer=32, min_count=16).load_state_dict(state)
    with pytest.raises(UserError, match="min_count 16, this run 8"):
        PromptStatistics(buffer=16, min_count=8).load_state_dict(state)


@pytest.mark.parametrize(("buffer", "least"), [(16, 0), (16, 17), (0, 0)])
def test_wrong_settings(buffer: int, least: int) -> None:
    with pytest.raises(UserError, match="min_count must be between 1 and buffer"):
        PromptStatistics(buffer=buffer, min_count=least)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="one id a reward: 1 ids"):
        PromptStatistics().update(["a"], torch.zeros(2))
