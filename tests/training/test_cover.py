"""Which pieces hold together what an objective must see at once."""

from __future__ import annotations

import torch

from mmrl.training.cover import covers
from mmrl.training.policy import Bundle, Piece

STEP = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 2]])
MASK = torch.ones(2, 4, dtype=torch.bool)
ROWS = torch.arange(2)


def judged(*pieces: Piece, scope: str = "segment", mask: torch.Tensor = MASK) -> bool:
    return covers([Bundle([p]) for p in pieces], scope, mask_nt=mask, segments=[STEP])


def by_step(*steps: int) -> list[Piece]:
    return [Piece(ROWS, own=s == STEP) for s in steps]


def test_pieces_of_steps_cut_no_segment() -> None:
    assert judged(*by_step(0, 1, 2))
    assert not judged(*by_step(0, 1, 2), scope="row")
    assert judged(*by_step(0, 1, 2), scope="decision")
    assert judged(Piece(ROWS, own=STEP < 2), *by_step(2)), "several whole segments in a piece"


def test_pieces_that_cut_segments() -> None:
    assert not judged(*(Piece(ROWS, columns=torch.tensor([t])) for t in range(4)))
    assert not judged(Piece(ROWS, columns=torch.tensor([0, 1])), Piece(ROWS, columns=torch.tensor([2, 3])))
    half = Piece(ROWS, own=STEP.eq(1) & (torch.arange(4) > 1))
    assert not judged(*by_step(0, 2), half), "a part of a step that no piece evaluates"
    assert judged(*by_step(0, 2)), "a step that none does is not cut"


def test_masked_decisions_do_not_matter() -> None:
    mask = torch.tensor([[True, True, False, False], [True, False, True, False]])
    assert judged(*by_step(0, 1), mask=mask)
    halves = [Piece(ROWS, columns=torch.tensor(c)) for c in ([0, 1], [2, 3])]
    assert judged(*halves, mask=mask) and not judged(*halves)


def test_whole_rows_summands_and_unknown_segments() -> None:
    assert judged(Piece(ROWS[:1]), Piece(ROWS[1:])) and judged(Piece(ROWS[:1]), Piece(ROWS[1:]), scope="group")
    assert not judged(Piece(ROWS[:1]), Piece(ROWS[1:]), scope="batch")
    assert judged(Piece(ROWS), scope="batch") and not covers([Bundle([Piece(ROWS)])], "batch", alone=False)
    assert not judged(Piece(ROWS, share=True), Piece(ROWS, share=True), scope="decision")
    assert not covers([Bundle(by_step(0, 1, 2))], "segment", mask_nt=MASK), "no segment is known"


def test_a_piece_shorter_than_the_table() -> None:
    """Its longest row ends before the table does."""
    mask = MASK & (torch.arange(4) < 3)
    assert judged(*(Piece(ROWS, own=(s == STEP)[:, :3]) for s in range(2)), mask=mask)
    assert not judged(*(Piece(ROWS, own=(s == STEP)[:, :3]) for s in range(2)))


def test_nothing_to_cover() -> None:
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert covers([], "segment", mask_nt=empty.bool(), segments=[empty])
    assert covers([Bundle([Piece(ROWS, own=empty.bool())])], "segment", mask_nt=empty.bool(), segments=[empty])
