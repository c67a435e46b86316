"""Layout of packed sequences: the worked example of Prefix Grouper (arXiv 2506.05433)."""

from __future__ import annotations

import torch

from mmrl.vlm.encode import Prompt
from mmrl.vlm.packed import block_mask, layout
from mmrl.vlm.rows import Row


def test_worked_example() -> None:
    """P = (7, 8), R1 = (9), R2 = (4, 5), with one more token each, which predicts nothing and is left out."""
    prompt = Prompt(torch.tensor([7, 8]), torch.arange(2).expand(3, -1), next_position=2)
    rows = [Row(prompt, torch.tensor([9, 1])), Row(prompt, torch.tensor([4, 5, 1]))]
    place = layout(rows, [prompt], [0, 0])
    assert place.ids.tolist() == [[7, 8, 9, 4, 5]]
    assert place.positions.tolist() == [[[0, 1, 2, 2, 3]]] * 3
    assert place.block.tolist() == [[0, 0, 1, 2, 2]]
    assert block_mask(place.block)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert place.at.tolist() == [[1, 2, 0], [1, 3, 4]]  # 8 -> 9 -> end; 8 -> 4 -> 5 -> end


def test_padding_sees_itself_only() -> None:
    mask = block_mask(torch.tensor([[0, 1, -1]]))[0, 0]
    assert mask[2].tolist() == [False, False, True]


def test_prompts_of_two_lengths() -> None:
    short = Prompt(torch.tensor([3]), torch.zeros(3, 1, dtype=torch.long), next_position=1)
    long = Prompt(torch.tensor([5, 6]), torch.arange(2).expand(3, -1), next_position=9)
    rows = [Row(long, torch.tensor([1, 2])), Row(short, torch.tensor([4]))]
    place = layout(rows, [short, long], [1, 0])
    assert place.ids.tolist() == [[3, 0, 0], [5, 6, 1]]
    assert place.block.tolist() == [[0, -1, -1], [0, 0, 1]]
    assert place.positions[:, 1, 2].tolist() == [9, 9, 9]  # M-RoPE: one past the largest id of the prompt
    assert place.at[1, 0] == 0 and place.at[0].tolist() == [4, 5]
