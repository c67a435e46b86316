"""Segment reductions against brute force, on batches that hypothesis makes up."""

from __future__ import annotations

import pytest
import torch
from core_group_checks import GROUP_CHECKS, compare_with_loops
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.core.groups import Groups, flat_rows

ROW = st.tuples(
    st.integers(-3, 3),
    st.floats(-100, 100, allow_nan=False, width=32).map(lambda v: round(v, 2)) | st.sampled_from([0.0, 0.1, 1.0]),
    st.booleans() | st.just(True),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(ROW, min_size=1, max_size=12))
def test_every_statistic_equals_a_loop(rows: list[tuple[int, float, bool]]) -> None:
    key, value, valid = [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]
    junk = [v if ok else float("nan") for v, ok in zip(value, valid)]
    compare_with_loops(key, junk, valid, torch.float64)
    compare_with_loops(key, value, [True] * len(key), torch.float32)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 4), st.lists(ROW, min_size=16, max_size=16))
def test_equal_blocks_equal_a_loop(blocks: int, size: int, rows: list[tuple[int, float, bool]]) -> None:
    """Rows as trainers make them, group after group: reduced as a table, to the same bits."""
    key = [7 * b for b in range(blocks) for _ in range(size)]
    value, valid = [r[1] for r in rows[: len(key)]], [r[2] for r in rows[: len(key)]]
    assert Groups(torch.tensor(key))._blocks == (blocks, size)
    compare_with_loops(key, value, valid, torch.float32)
    compare_with_loops(key, value, [True] * len(key), torch.float64)


@pytest.mark.parametrize("name", GROUP_CHECKS)
def test_fixed_batches(name: str) -> None:
    GROUP_CHECKS[name]()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1))
def test_a_group_is_flat_when_every_weighted_component_is(rows: list[tuple[int, float, float]]) -> None:
    key = [r[0] for r in rows]
    reward = torch.tensor([r[1:] for r in rows])
    for weight in ([1.0, 1.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]):
        got = flat_rows(reward_nk=reward, weight_k=torch.tensor(weight), key_n=torch.tensor(key)).tolist()
        for i, k in enumerate(key):
            own = [r[1:] for r in rows if r[0] == k]
            parts = [{r[c] for r in own} for c in (0, 1) if weight[c]]
            assert got[i] == all(len(p) == 1 for p in parts)


def test_rounding_is_flat_and_a_real_difference_is_not() -> None:
    groups = Groups(torch.tensor([0, 0, 1, 1]))
    x = torch.tensor([0.3, 0.1 + 0.2, 0.3, 0.3001], dtype=torch.float64)
    assert groups.flat(x).tolist() == [True, True, False, False]


@pytest.mark.parametrize("key", [torch.tensor([0.0, 1.0]), torch.tensor([[0, 1]])])
def test_a_key_is_a_row_of_integers(key: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="a key is int64"):
        Groups(key)


def test_an_empty_batch() -> None:
    groups = Groups(torch.zeros(0, dtype=torch.long))
    x = torch.zeros(0)
    for value in (groups.mean(x), groups.std(x, ddof=1), groups.rank(x), groups.median(x), groups.flat(x)):
        assert value.shape == (0,)
