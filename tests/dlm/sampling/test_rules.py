"""How many and which: the worked schedules, the confidence rules, the orders, the draw."""

from __future__ import annotations

import math

import pytest
import torch

from dlm.sampling import counts, noise, orders
from dlm.sampling.guidance import guided


@pytest.mark.parametrize(
    ("masked", "steps", "expected"),
    [(8, 3, [3, 3, 2]), (5, 8, [1, 1, 1, 1, 1]), (32, 16, [2] * 16), (4, 4, [1] * 4), (7, 1, [7])],
)
def test_worked_schedules(masked: int, steps: int, expected: list[int]) -> None:
    assert counts.schedule(masked, steps) == expected
    each = [int(counts.budget(torch.tensor([masked]), torch.tensor([steps]), j)) for j in range(len(expected))]
    assert each == expected


def test_steps_of_a_completion_are_split_over_its_blocks_by_their_masks() -> None:
    assert counts.block_steps(128, [32] * 8) == [16] * 8
    assert counts.block_steps(10, [4] * 4) == [3, 2, 3, 2]
    assert counts.block_steps(2, [4] * 4) == [1] * 4  # a block cannot cost less than one
    assert counts.block_steps(20, [32, 8]) == [16, 4]
    assert counts.block_steps(8, [2, 4, 2]) == [2, 4, 2]  # a step for each token
    assert counts.block_steps(4, [2, 4, 2, 0]) == [1, 2, 1, 1]
    for steps in range(1, 40):
        split = counts.block_steps(steps, [3, 8, 8, 5])
        assert sum(split) == steps or 1 in split
        if steps <= 24:
            assert all(s <= m for s, m in zip(split, [3, 8, 8, 5]))


def test_threshold_takes_what_is_sure_and_never_less_than_the_floor() -> None:
    confidence = torch.tensor([[0.95, 0.3, 0.92, 0.91], [0.5, 0.6, 0.1, 0.2], [0.95, 0.3, 0.2, 0.1]])
    everywhere = torch.ones(3, 4, dtype=torch.bool)
    rank = orders.ranks(confidence, everywhere)

    def taken(threshold: float, floor: int) -> list[list[int]]:
        floors = torch.full((3,), floor)
        found = counts.above(confidence, rank, everywhere, threshold=threshold, floor_n=floors)
        return [row.nonzero()[:, 0].tolist() for row in found]

    assert taken(0.9, 1) == [[0, 2, 3], [1], [0]]
    assert taken(0.9, 2) == [[0, 2, 3], [0, 1], [0, 1]]  # where fewer than the floor are sure: the best by rank
    assert taken(0.95, 1) == [[0], [1], [0]]  # nothing exceeds it
    assert taken(0.0, 1) == [[0, 1, 2, 3]] * 3


def test_a_saturated_confidence_does_not_exceed_a_threshold_of_one() -> None:
    sure = torch.ones(1, 3)
    there = sure > 0
    found = counts.above(sure, orders.ranks(sure, there), there, threshold=1.0, floor_n=torch.tensor([1]))
    assert found.tolist() == [[True, False, False]]


def test_factor_takes_the_largest_n_that_fits() -> None:
    # (n + 1)(1 - c_n): 2 * 0.01, 3 * 0.1, 4 * 0.3, 5 * 0.5 -> 0.02, 0.3, 1.2, 2.5
    confidence = torch.tensor([[0.5, 0.99, 0.7, 0.9]])
    there = torch.ones(1, 4, dtype=torch.bool)
    rank = orders.ranks(confidence, there)

    def taken(factor: float) -> list[int]:
        return counts.by_factor(confidence, rank, there, factor=factor)[0].nonzero()[:, 0].tolist()

    assert taken(0.01) == [1]  # always one
    assert taken(0.1) == [1]
    assert taken(0.3 + 1e-6) == [1, 3]
    assert taken(1.0) == [1, 3]
    assert taken(1.21) == [1, 2, 3]
    assert taken(2.51) == [0, 1, 2, 3]


def test_factor_counts_open_positions_only() -> None:
    confidence = torch.tensor([[0.99, 1.0, 0.98, 1.0]])
    open_positions = torch.tensor([[True, False, True, False]])
    rank = orders.ranks(confidence, open_positions)
    found = counts.by_factor(confidence, rank, open_positions, factor=100.0)
    assert found.tolist() == [[True, False, True, False]]


def test_ranks_break_ties_by_position_and_put_closed_positions_last() -> None:
    key = torch.tensor([[0.5, 0.9, 0.5, 0.9], [-math.inf, 0.1, -math.inf, 5.0]])
    there = torch.tensor([[True, True, True, True], [True, True, True, False]])
    assert orders.ranks(key, there).tolist() == [[2, 0, 3, 1], [1, 0, 2, 3]]


def test_keys_of_the_orders() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    shared = {
        "logp_mv": p.log(),
        "confidence_m": torch.tensor([0.3, 0.25]),
        "uniform_m": torch.tensor([0.1, 0.7]),
        "column_m": torch.tensor([4, 2]),
    }
    assert orders.key("low_confidence", **shared).tolist() == pytest.approx([0.3, 0.25])
    entropy = -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1))
    assert orders.key("entropy", **shared).tolist() == pytest.approx([-entropy, -math.log(4)])
    assert orders.key("margin", **shared).tolist() == pytest.approx([0.3, 0.0])
    assert orders.key("random", **shared).tolist() == pytest.approx([0.1, 0.7])
    assert orders.key("sequential", **shared).tolist() == [-4, -2]
    with pytest.raises(ValueError, match="low_confidence, random"):
        orders.key("best", **shared)


def test_top_p_and_top_k_keep_the_fewest_ids() -> None:
    logits = torch.tensor([[0.5, 0.1, 0.3, 0.1, 0.0]]).log()

    def kept(p: float, k: int) -> list[int]:
        return noise.allowed(logits, top_p=p, top_k=k)[0].nonzero()[:, 0].tolist()

    assert kept(0.4, 0) == [0]
    assert kept(0.6, 0) == [0, 2]
    assert kept(0.85, 0) == [0, 1, 2]  # a tie goes to the smaller id
    assert kept(1.0, 0) == [0, 1, 2, 3]  # the last one has probability 0
    assert kept(0.7, 2) == [0, 2]  # the share is that of the two that are left: 0.625 < 0.7
    assert kept(0.6, 2) == [0]
    assert kept(1e-9, 0) == [0]


def test_the_draw_has_the_distribution_of_gumbel_max() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, -torch.inf, 2.0]).expand(200_000, 5)
    generator = torch.Generator().manual_seed(0)
    ours = noise.pick(logits, torch.rand(len(logits), generator=generator, dtype=torch.float64))
    u = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    theirs = (logits - (-u.log()).log()).argmax(-1)
    p = torch.softmax(logits[0], 0)
    for drawn in (ours, theirs):
        share = torch.bincount(drawn, minlength=5) / len(logits)
        assert share[3] == 0
        torch.testing.assert_close(share, p, atol=4.5e-3, rtol=0)  # 4 standard deviations


def test_the_draw_stays_inside_at_the_ends_of_the_interval() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    assert noise.pick(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 2]


def test_guidance_of_scale_zero_is_the_prompt_and_of_one_goes_beyond_it() -> None:
    given, without = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])
    assert guided(given, without, 0.0).tolist() == given.tolist()
    assert guided(given, without, 1.0).tolist() == [[1.0, 5.0]]  # l_u + 2 (l_c - l_u)
