"""Countdown and Sudoku rewards, and the expression reader: literals, cheats, hostile strings."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.rewards.expression import numbers_in, value
from mmrl.errors import UserError

GOAL = {"numbers": [3, 7, 5], "target": 22}
GRID = {"puzzle": "3000040221004021", "solution": "3214143221434321"}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("3*5+7", 22),
        ("7 + 3 * 5", 22),
        ("(7+3)*5", 50),
        ("7-3-5", -1),
        ("7-(3-5)", 9),
        ("8/4/2", 1),
        ("8/(4/2)", 4),
        ("7/3", Fraction(7, 3)),
        ("-3+5", 2),
        ("2*-3", -6),
        ("-(2+3)*4", -20),
        ("--3", 3),
        ("-2*3-4", -10),
        ("+5", 5),
        ("((5))", 5),
        ("007", 7),
    ],
)
def test_values(text, right):
    assert value(text) == right


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "()",
        "3+",
        "*3",
        "3 5",
        "3(5)",
        "(3)(5)",
        "(3",
        "3)",
        ")3(",
        "3**2",
        "9//2",
        "2.5",
        ".5",
        "5.",
        "1e3",
        "3=3",
    ]
    + [
        "1/0",
        "1/(3-3)",
        "0/0",
        "x",
        "3+x",
        "__import__('os').system('true')",
        "3,5",
        "9" * 10,
        "3+4 # note",
        "0x10",
        "٣",
    ]
    + ["(" * 5000, "-" * 401 + "1", "1" + "+1" * 300, "9**9**9**9", "1_000"],
)
def test_what_is_no_expression(text):
    assert value(text) is None


def test_nesting_and_signs_within_the_limit():
    assert value("(" * 190 + "5" + ")" * 190) == 5
    assert value("-" * 399 + "5") == -5


def tree(rng, depth):
    """(text, value or None) by another road: bracketed everywhere, computed while it is made."""
    if depth == 0 or rng.random() < 0.2:
        number = rng.randrange(100)
        return str(number), Fraction(number)
    (a, x), (b, y) = tree(rng, depth - 1), tree(rng, depth - 1)
    sign = rng.choice("+-*/")
    if x is None or y is None or (sign == "/" and y == 0):
        return f"({a}){sign}({b})", None
    return f"({a}){sign}({b})", x / y if sign == "/" else {"+": x + y, "-": x - y, "*": x * y}[sign]


def test_random_expressions():
    rng = random.Random(5)
    for _ in range(300):
        text, right = tree(rng, 4)
        assert len(text) <= 400 and value(text) == right


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*"0123456789+-*/", " "]), max_size=9).map("".join))
def test_precedence_is_that_of_python(text):
    """Where both can read the text, they agree."""
    if "**" in text or "//" in text or value(text) is None or any(p[:1] == "0" for p in text.split() if len(p) > 1):
        return
    try:
        right = eval(text)
    except SyntaxError:  # a leading zero
        return
    assert float(value(text)) == pytest.approx(right)


def test_numbers_in_a_text():
    assert numbers_in("3*5+7, 12") == [3, 5, 7, 12] and numbers_in("none") == [] and numbers_in("1" * 10) is None


@pytest.mark.parametrize(
    ("said", "score", "tags_score"),
    [
        ("3*5+7", 1.0, 1.0),
        (" 7 + (5 * 3)\n", 1.0, 1.0),
        ("3+5+7", 0.1, 0.1),
        ("3 5 7", 0.1, 0.1),  # the right numbers, no expression
        ("7/(5-5+3)", 0.0, 0.1),  # 5 twice
        ("3*5+7+0", 0.0, 0.1),  # a number of its own
        ("5*3", 0.0, 0.1),  # one left out
        ("22", 0.0, 0.1),
        ("3*5+7=22", 0.0, 0.1),
        ("", 0.0, 0.1),
        ("35+7", 0.0, 0.1),
    ],
)
def test_countdown(one, said, score, tags_score):
    text = f"<reasoning>\n3+4\n</reasoning>\n<answer>\n{said}\n</answer>"
    assert one("countdown", text, GOAL, task="countdown") == score
    assert one("countdown", text, GOAL, task="countdown", partial_for="tags") == tags_score
    assert one("countdown", text, GOAL, task="countdown", partial=0.0) == (1.0 if score == 1.0 else 0.0)


def test_countdown_reads_the_last_answer(one):
    right, wrong = "<answer>3*5+7</answer>", "<answer>3+5+7</answer>"
    assert one("countdown", wrong + right, GOAL, task="countdown") == 1.0
    assert one("countdown", right + wrong, GOAL, task="countdown") == 0.1
    assert one("countdown", right + "<answer>", GOAL, task="countdown") == 1.0


def test_countdown_without_tags(one):
    def score(**options):
        return one("countdown", "3*5+7", GOAL, task="countdown", **options)

    assert score() == 0.0 and score(style="d1") == 0.0 and score(style="plain") == 1.0
    assert score(style="plain", tags="required") == 0.0 and score(tags="optional") == 1.0
    assert one("countdown", "3*5+7<answer>", GOAL, task="countdown") == 0.0


def test_countdown_division(one):
    thirds = {"numbers": [8, 3, 8, 3], "target": 24}
    assert one("countdown", "8/(3-8/3)", thirds, task="countdown", style="plain") == 1.0
    assert one("countdown", "8/(3-3)+8", thirds, task="countdown", style="plain") == 0.1  # by zero
    assert one("countdown", "2.5", {"numbers": [2, 5], "target": 2}, task="countdown", style="plain") == 0.1


@pytest.mark.parametrize("answer", [None, 22, "22", {}, {"numbers": [], "target": 1}, {"numbers": [1]}])
def test_a_countdown_answer_of_another_kind(one, answer):
    with pytest.raises(UserError, match="record 'r': answer of a countdown must be"):
        one("countdown", "1", answer, task="countdown")


@pytest.mark.parametrize(
    ("said", "cells", "solved"),
    [
        ("3214143221434321", 1.0, 1.0),
        ("3214 1432\n2143 4321", 1.0, 1.0),
        ("3|2|1|4 - 1432 2143 4321", 1.0, 1.0),
        ("1111111111111111", 2 / 8, 0.0),
        ("3214", 3 / 8, 0.0),
        ("32141432214343211", 1.0, 0.0),  # one too many: cut off, as released, but not solved
        ("4214143221434321", 1.0, 0.0),  # a given cell changed: only empty cells count
        ("", 0.0, 0.0),
        ("no digits", 0.0, 0.0),
    ],
)
def test_sudoku(one, said, cells, solved):
    text = f"<reasoning>\n1111\n</reasoning>\n<answer>\n{said}\n</answer>\n"
    assert one("sudoku_cells", text, GRID, task="sudoku4") == pytest.approx(cells)
    assert one("sudoku_solved", text, GRID, task="sudoku4") == solved
    assert one("sudoku_cells", said, GRID, task="sudoku4") == 0.0  # no tags
    assert one("sudoku_cells", said, GRID, task="sudoku4", style="plain") == pytest.approx(cells)


def test_a_sudoku_without_holes_gives_nothing(one):
    full = {"puzzle": GRID["solution"], "solution": GRID["solution"]}
    assert one("sudoku_cells", f"<answer>{GRID['solution']}</answer>", full, task="sudoku4") == 0.0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "answer of a sudoku4 must be"),
        ({"puzzle": "0" * 15, "solution": "1" * 16}, "answer of a sudoku4 must be"),
        ({"puzzle": "0" * 16, "solution": "5" * 16}, "answer of a sudoku4 must be"),
        ({"puzzle": 3000040221004021, "solution": GRID["solution"]}, "both as text"),
        ({"puzzle": "4" + GRID["puzzle"][1:], "solution": GRID["solution"]}, "changes a given cell"),
    ],
)
def test_a_sudoku_answer_of_another_kind(one, answer, message):
    with pytest.raises(UserError, match=message):
        one("sudoku_cells", "1", answer, task="sudoku4")
