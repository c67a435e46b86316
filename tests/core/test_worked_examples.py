"""The literal numbers of core_examples.py in float64 and float32, and edge cases of the advantages."""

from __future__ import annotations

import core_dlm_examples  # noqa: F401  (registers examples)
import core_flow_examples  # noqa: F401
import core_video_examples  # noqa: F401
import pytest
import torch
from core_examples import EXAMPLES, close, rewards

from mmrl.core.registry import bind


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_worked_example(name: str, dtype: torch.dtype) -> None:
    EXAMPLES[name](dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "batch-std", "rloo"])
def test_a_group_of_one(name: str, dtype: torch.dtype) -> None:
    """Zero by default; the reward itself where asked (verl); never NaN, alone in the batch or not."""
    for prompt, reward in (([0], [3.0]), ([0, 0, 1], [0.0, 1.0, 3.0])):
        table = rewards(dtype, reward, prompt)
        assert bind("advantage", name)(table)[-1] == 0
        assert bind("advantage", {"name": name, "singleton": "raw"})(table)[-1] == 3
    with pytest.raises(ValueError, match="singleton must be"):
        bind("advantage", {"name": name, "singleton": "keep"})(table)


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "batch-std", "rloo"])
def test_a_row_without_reward(name: str) -> None:
    """NaN: 0 for the row, and the group's statistics are those of the other two. A group of one by NaN gives 0."""
    nan = float("nan")
    got = bind("advantage", {"name": name})(rewards(torch.float64, [1.0, nan, 0.0, nan, 7.0, nan], [0, 0, 0, 1, 1, 2]))
    assert got[[1, 3, 4, 5]].tolist() == [0, 0, 0, 0]
    assert got[0] == -got[2] and got[0] > 0
    if name in ("dr-grpo", "rloo"):
        close(got[0], 0.5 if name == "dr-grpo" else 1.0)


def test_rewards_that_differ_by_rounding_are_equal() -> None:
    """0.1 + 0.2 against 0.3: no advantage of 1e-17 / 1e-6, nor of +-1 with eps 0."""
    table = rewards(torch.float64, [0.1 + 0.2, 0.3, 0.3], [0, 0, 0])
    assert bind("advantage", {"name": "grpo", "eps": 0.0})(table).tolist() == [0, 0, 0]


def test_half_precision_rewards_are_normalised_in_float32() -> None:
    table = rewards(torch.bfloat16, [1.0, 0.0, 0.0, 1.0], [0, 0, 0, 0])
    got = bind("advantage", "grpo")(table)
    assert got.dtype == torch.float32
    close(got, [0.866024, -0.866024, -0.866024, 0.866024], 1e-5)


def test_equal_rewards_whiten_to_nothing() -> None:
    """A constant reward far from 0 must not become an advantage through rounding of the mean."""
    n, t = 41, 29
    table = rewards(torch.float32, [1000.1] * n, [0] * n)
    table.channels["mask_nt"] = torch.arange(t)[None] < torch.arange(1, n + 1)[:, None]
    assert bind("advantage", "reinforce-pp")(table).abs().max() < 1e-6
