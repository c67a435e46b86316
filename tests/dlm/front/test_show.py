"""Trajectories as text: every frame shows what was filled by then, and nothing of what was not."""

from __future__ import annotations

import pytest
import torch

from dlm.rows import Row
from dlm.show import MASK, NEWLINE, frames, parts, spread, trajectory_lines


class Letters:
    """Bytes 0..255 as UTF-8; 256 is special."""

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def row(text: str, steps: list[int], *, length: int | None = None, **more: object) -> Row:
    ids = torch.tensor(list(text.encode()) + [256] * (len(steps) - len(text.encode())))
    return Row(torch.tensor([1]), ids, torch.tensor(steps), length or len(steps), **more)  # type: ignore[arg-type]


def test_a_trajectory_line_by_line() -> None:
    one = row("12+30", [4, 4, 0, 7, 2])
    assert trajectory_lines(Letters(), one) == ["0/4  ·····", "1/4  ··+··", "2/4  ··+·0", "3/4  12+·0", "4/4  12+30"]


def test_steps_that_filled_nothing_are_no_forwards_and_what_was_never_filled_stays_masked() -> None:
    one = row("abc", [0, -1, 9])
    assert trajectory_lines(Letters(), one) == ["0/2  ···", "1/2  a··", "2/2  a·c"]


def test_what_follows_the_end_is_left_out_and_special_tokens_are_not_spelt() -> None:
    one = row("ab", [0, 3, 2, 1, 4], length=3)  # forwards 2 and 5 fill what is not shown
    assert trajectory_lines(Letters(), one) == ["0/5  ···", "1/5  a··", "3/5  a·", "4/5  ab"]


def test_most_keeps_both_ends() -> None:
    one = row("abcdefghij", list(range(10)))
    shown = trajectory_lines(Letters(), one, most=3)
    assert shown == [" 0/10  ··········", " 5/10  abcde·····", "10/10  abcdefghij"]
    assert spread(10, 1) == [0, 10] and spread(0, 5) == [0] and spread(3, None) == [0, 1, 2, 3]


def test_a_demonstration_is_one_frame() -> None:
    assert trajectory_lines(Letters(), row("abc", [-1, -1, -1], demonstration=True)) == ["abc"]


def test_characters_of_several_tokens_are_whole_once_they_are_there() -> None:
    one = row("é!", [0, 1, 2])
    shown = trajectory_lines(Letters(), one)
    assert shown[-2:] == ["2/3  é·", "3/3  é!"]
    assert parts(Letters(), one.ids, one.steps <= 1, one.steps == 1) == [("é", "new"), (MASK, "mask")]


def test_new_tokens_are_told_from_old_ones() -> None:
    one = row("abcd", [0, 1, 0, 2])
    assert parts(Letters(), one.ids, one.steps <= 1, one.steps == 1) == [
        ("a", "old"), ("b", "new"), ("c", "old"), (MASK, "mask"),
    ]  # fmt: skip


def test_each_position_is_new_exactly_once() -> None:
    torch.manual_seed(0)
    one = row("x" * 40, torch.randint(0, 9, (40,)).tolist())
    total = sum(frame.new_l.int() for frame in frames(one))
    assert isinstance(total, torch.Tensor) and total.tolist() == [1] * 40


def test_control_characters_do_not_reach_the_terminal() -> None:
    one = row("a\x1b[31m\nb", [0] * 8)
    (last,) = trajectory_lines(Letters(), one)[-1:]
    assert "\x1b" not in last and NEWLINE in last and "\n" not in last


@pytest.mark.parametrize("width", [20, 50])
def test_long_texts_are_folded_under_their_frame_without_loss(width: int) -> None:
    text = "the quick brown fox jumps over the lazy dog " * 3
    one = row(text, [0] * len(text))
    shown = trajectory_lines(Letters(), one, width=width)
    assert all(len(line) <= width for line in shown)
    last = shown[[i for i, line in enumerate(shown) if line.startswith("1/1")][0] :]
    assert all(line.startswith(" " * 5) for line in last[1:])
    assert "".join(line[5:] for line in last) == text
