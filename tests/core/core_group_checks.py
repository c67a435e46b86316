"""Groups against plain loops: the oracle, and fixed batches for the mutation test."""

from __future__ import annotations

import math
import statistics

import torch

from mmrl.core.groups import FLAT, Groups, total_reward


def statistics_of(groups: Groups, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "count": groups.count(),
        "sum": groups.sum(x),
        "mean": groups.mean(x),
        "std0": groups.std(x, ddof=0),
        "std1": groups.std(x, ddof=1),
        "leave_one_out": groups.leave_one_out(x),
        "max": groups.max(x),
        "min": groups.min(x),
        "rank": groups.rank(x),
        "median": groups.median(x),
        "flat": groups.flat(x),
    }


def compare_with_loops(key: list[int], value: list[float], valid: list[bool], dtype: torch.dtype) -> None:
    """Every statistic of Groups against a loop over the rows. Invalid rows may hold anything, NaN included.

    Groups that take rows as blocks give the same bits without them.
    """
    tol = 1e-9 if dtype == torch.float64 else 1e-4
    x = torch.tensor(value, dtype=dtype)
    got, scattered = (
        statistics_of(Groups(torch.tensor(key), torch.tensor(valid), blocks=blocks), x) for blocks in (True, False)
    )
    for name, value_n in got.items():
        same = torch.equal if dtype == torch.float32 or value_n.dtype != dtype else torch.allclose
        assert same(value_n, scattered[name]), f"{name}: {value_n.tolist()} in blocks, else {scattered[name].tolist()}"
    exact = x.tolist()
    for i, k in enumerate(key):
        rows = [j for j in range(len(key)) if key[j] == k and valid[j]]
        own = [exact[j] for j in rows]
        others = [exact[j] for j in rows if j != i]
        order = sorted(rows, key=lambda j: (exact[j], j))
        expected = {
            "count": len(own),
            "sum": sum(own),
            "mean": statistics.fmean(own) if own else 0.0,
            "std0": statistics.pstdev(own) if own else 0.0,
            "std1": statistics.stdev(own) if len(own) > 1 else 0.0,
            "leave_one_out": statistics.fmean(others) if others else 0.0,
            "max": max(own, default=-math.inf),
            "min": min(own, default=math.inf),
            "rank": order.index(i) if valid[i] else -1,
            "median": statistics.median(own) if own else 0.0,
            "flat": not own or max(own) - min(own) <= FLAT,
        }
        for name, want in expected.items():
            have = got[name][i].item()
            close = have == want or abs(have - want) <= tol * max(1.0, max(map(abs, own), default=1.0))
            assert close, f"{name} of row {i} in {key}, {value}, {valid}: {have}, a loop gives {want}"


def groups() -> None:
    nan = math.nan
    compare_with_loops([3, 1, 3, 1, 3, 2], [1.0, 5.0, 2.0, 7.0, 4.0, 9.0], [True] * 6, torch.float64)
    compare_with_loops([5, 5, 5, 5], [1.0, nan, 3.0, 3.0], [True, False, True, True], torch.float64)
    compare_with_loops([5, 5, 0, 0], [1.0, 50.0, nan, nan], [True, False, False, False], torch.float64)
    compare_with_loops(
        [2, 2, 5, 5, 9, 9], [1.0, 0.1, 2.0, nan, 4.0, 9.0], [True, True, True, False, True, True], torch.float32
    )
    compare_with_loops([2, 2, 5, 5], [1.0, 0.1, 2.0, 7.0], [True] * 4, torch.float32)
    compare_with_loops([0, 0, 1, 1, 1, 1, 2, 2], [1.0, 5.0, 2.0, 7.0, 4.0, 9.0, 0.0, 1.0], [True] * 8, torch.float64)
    compare_with_loops([0, 0, 1, 2], [1.0, 5.0, 2.0, 7.0], [True] * 4, torch.float64)
    compare_with_loops([0, 0, 1], [1.0, 5.0, 2.0], [True] * 3, torch.float64)
    compare_with_loops([-4, 9, -4, 9, -4], [-2.0, 0.1, -2.0, 0.1, -1.0], [True] * 5, torch.float32)


def total_reward_check() -> None:
    nan = math.nan
    reward = torch.tensor([[1.0, 2.0], [nan, 2.0], [nan, nan], [0.0, nan]], dtype=torch.float64)
    got = total_reward(reward_nk=reward, weight_k=torch.tensor([1.0, 0.25], dtype=torch.float64)).tolist()
    assert got[:2] == [1.5, 0.5] and math.isnan(got[2]) and got[3] == 0.0


GROUP_CHECKS = {"groups": groups, "total_reward": total_reward_check}
