"""Step maps: rounds, merged steps and slices of small canvases by hand, and their properties on random ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmrl.masked.steps import check_partition, fill_set, merged, n_steps, rounds, slices, visible_before

#         block 0     block 1
STEPS = [[0, 1, 0, 2, 3, 3, 5, 4], [-1, -1, 7, 6, 9, 9, 9, 9]]
BLOCKS = [[0, 0, 0, 0, 1, 1, 1, 1]] * 2


def maps() -> tuple[Tensor, Tensor]:
    return torch.tensor(STEPS), torch.tensor(BLOCKS)


def random_maps(seed: int, n: int = 5, l: int = 12, block: int = 4) -> tuple[Tensor, Tensor]:  # noqa: E741
    """Steps are global: those of a later block come after those of an earlier one; some positions are given."""
    g = torch.Generator().manual_seed(seed)
    block_nl = (torch.arange(l) // block).expand(n, l).clone()
    steps = torch.randint(0, 4, (n, l), generator=g) * 2 + 10 * block_nl
    return torch.where(torch.rand(n, l, generator=g) < 0.2, -1, steps), block_nl


def plain_rounds(steps: list[int], blocks: list[int]) -> list[int]:
    out = []
    for s, b in zip(steps, blocks):
        mates = sorted({t for t, c in zip(steps, blocks) if c == b and t >= 0})
        out.append(mates.index(s) if s >= 0 else -1)
    return out


def test_fill_sets_and_what_was_visible() -> None:
    steps, _ = maps()
    assert fill_set(steps, 0).long().tolist() == [[1, 0, 1, 0, 0, 0, 0, 0], [0] * 8]
    assert fill_set(steps, torch.tensor([3, 9])).long().tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]]
    assert not fill_set(steps, -1).any()  # given positions are nobody's fill set
    assert visible_before(steps, torch.tensor([2, 7])).long().tolist() == [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0],
    ]


def test_distinct_steps_are_the_denoising_forwards() -> None:
    steps, _ = maps()
    assert n_steps(steps).tolist() == [6, 3]
    assert n_steps(steps, torch.tensor(BLOCKS) == 0).tolist() == [3, 2]
    assert n_steps(torch.full((2, 3), -1)).tolist() == [0, 0]
    assert n_steps(torch.zeros(2, 0, dtype=torch.long)).tolist() == [0, 0]


def test_a_partition_is_checked_with_the_first_wrong_position() -> None:
    steps, _ = maps()
    check_partition(steps, steps >= 0)
    with pytest.raises(ValueError, match="row 1, position 0 was never filled"):
        check_partition(steps, torch.ones_like(steps, dtype=torch.bool))
    with pytest.raises(ValueError, match="row 0, position 0 is given but was filled"):
        check_partition(steps, torch.zeros_like(steps, dtype=torch.bool))


def test_rounds_count_the_distinct_steps_of_each_block() -> None:
    steps, block = maps()
    assert rounds(steps, block).tolist() == [[0, 1, 0, 2, 0, 0, 2, 1], [-1, -1, 1, 0, 0, 0, 0, 0]]
    assert rounds(steps).tolist() == [[0, 1, 0, 2, 3, 3, 5, 4], [-1, -1, 1, 0, 2, 2, 2, 2]]


def test_merged_steps_take_the_last_of_k() -> None:
    steps, block = maps()
    assert merged(steps, block, 2).tolist() == [[1, 1, 1, 2, 4, 4, 5, 4], [-1, -1, 7, 7, 9, 9, 9, 9]]
    assert merged(steps, None, 4).tolist() == [[3, 3, 3, 3, 3, 3, 5, 5], [-1, -1, 9, 9, 9, 9, 9, 9]]
    assert torch.equal(merged(steps, block, 1), steps)
    with pytest.raises(ValueError, match="at least 1"):
        merged(steps, block, 0)


@pytest.mark.parametrize("seed", range(5))
def test_rounds_and_merging_equal_their_plain_definition(seed: int) -> None:
    steps, block = random_maps(seed)
    for row in range(len(steps)):
        s, b = steps[row].tolist(), block[row].tolist()
        ranks = plain_rounds(s, b)
        assert rounds(steps, block)[row].tolist() == ranks
        for k in (1, 2, 3, 100):
            want = [
                -1 if t < 0 else max(u for u, c, r in zip(s, b, ranks) if u >= 0 and c == d and r // k == q // k)
                for t, d, q in zip(s, b, ranks)
            ]
            assert merged(steps, block, k)[row].tolist() == want


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("shrink", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_slices_fill_each_position_once_given_what_was_visible(seed: int, shrink: int, blocks: bool) -> None:
    steps, block_nl = random_maps(seed)
    block = block_nl if blocks else torch.zeros_like(block_nl)
    parts = slices(steps, block, shrink=shrink)
    assert torch.equal(sum(p.filled_nl.long() for p in parts), (steps >= 0).long())  # type: ignore[arg-type]
    after = merged(steps, block, shrink)
    distinct = [
        len({int(t) for t, c in zip(after[r], block[r]) if c == b and t >= 0})
        for r in range(len(steps))
        for b in range(int(block.max()) + 1)
    ]
    assert len(parts) == max(distinct)
    for part in parts:
        assert not (part.filled_nl & ~part.masked_nl).any()
        for row, column in part.filled_nl.nonzero().tolist():
            mates = block[row] == block[row, column]
            seen = after[row] < after[row, column]
            assert torch.equal(part.masked_nl[row, mates], ~seen[mates])


def test_full_attention_masks_all_later_blocks() -> None:
    steps, _ = maps()
    parts = slices(steps[:1])
    assert [p.masked_nl[0].long().tolist() for p in parts][:4] == [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [0, 1, 0, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1, 1],
    ]


def test_positions_outside_are_masked_as_the_decoding_saw_them_but_never_scored() -> None:
    steps = torch.tensor([[0, 1, 1, 2]])  # the end token stands at position 1
    parts = slices(steps, within_nl=torch.tensor([[True, True, False, False]]))
    assert [p.masked_nl[0].long().tolist() for p in parts] == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert [p.filled_nl[0].long().tolist() for p in parts] == [[1, 0, 0, 0], [0, 1, 0, 0]]


def test_rows_and_batches_of_nothing() -> None:
    assert slices(torch.full((2, 3), -1)) == []
    assert slices(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)) == []
    assert merged(torch.full((1, 3), -1), None, 2).tolist() == [[-1, -1, -1]]
    with pytest.raises(ValueError, match="int64"):
        rounds(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="does not fit"):
        rounds(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long))
