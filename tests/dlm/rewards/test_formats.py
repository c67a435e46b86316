"""Format rewards against literal values of the released functions, and against their regular expressions."""

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlm.rewards import formats
from dlm.rewards.reading import boxed, final_answer, last_pair

GOOD = "<reasoning>\n6 + 6\n</reasoning>\n<answer>\n12\n</answer>\n"


@pytest.mark.parametrize(
    ("text", "xml", "soft", "strict", "integer"),
    [
        (GOOD, 0.5, 0.5, 0.5, 0.5),
        (GOOD[:-1], 0.375 + 0.126 - 0.001 * len(GOOD[:-1]), 0.5, 0.0, 0.5),  # the last line is not ended
        (GOOD + "\n", 0.5 - 0.002, 0.5, 0.5, 0.5),
        (GOOD + "more", 0.5 - 0.008, 0.5, 0.0, 0.5),
        ("x" + GOOD, 0.5, 0.0, 0.0, 0.5),
        (GOOD.replace("12", "twelve"), 0.5, 0.5, 0.5, 0.0),
        (GOOD.replace("12", "-12"), 0.5, 0.5, 0.5, 0.0),
        (GOOD.replace("12", "1,200"), 0.5, 0.5, 0.5, 0.0),
        ("<reasoning>6 + 6</reasoning> <answer>12</answer>", 0.0, 0.5, 0.0, 0.5),
        (GOOD + GOOD, 0.0, 0.5, 0.5, 0.5),  # every line twice: none counts, and the layout may hold anything
        ("12", 0.0, 0.0, 0.0, 0.5),
        ("", 0.0, 0.0, 0.0, 0.0),
        ("<reasoning>\n", 0.125, 0.0, 0.0, 0.0),
        ("a\n<answer>\n12", 0.125 - 0.013, 0.0, 0.0, 0.5),
        ("<answer>\n\n</answer>", 0.126, 0.0, 0.0, 0.0),
        ("<reasoning>\n\n</reasoning>\n<answer>\n\n</answer>\n", 0.5, 0.5, 0.5, 0.0),
        ("<reasoning>\n</reasoning>\n<answer>\n</answer>\n", 0.5, 0.5, 0.0, 0.0),
    ],
)
def test_released_values(one, text, xml, soft, strict, integer):
    assert one("xml_count", text) == pytest.approx(xml)
    assert one("soft_format", text) == soft
    assert one("strict_format", text) == strict
    assert one("int", text) == integer


def test_a_tail_costs_more_than_the_tags_give(one):
    assert one("xml_count", GOOD + "x" * 500) == pytest.approx(0.5 - 2 * 0.5)


@pytest.mark.parametrize(
    ("text", "value", "released"),
    [
        ("<answer>\\boxed{3}</answer>", 1.0, 0.75),
        ("<answer>3</answer> \\boxed{3}", 0.75, 0.75),
        ("<answer>\\boxed{3}", 1.0, 0.75),
        ("\\boxed{3}", 0.5, 0.25),
        ("3", 0.25, 0.25),
        ("", 0.25, 0.25),
        ("<answer>1<answer>\\boxed{3}</answer>", 0.75, 0.75),
    ],
)
def test_boxed_values(one, text, value, released):
    assert one("boxed", text, task="math") == value
    assert one("boxed", text, task="math", released=True) == released


PIECES = [
    "<reasoning>",
    "</reasoning>",
    "<answer>",
    "</answer>",
    "\n",
    " ",
    "x",
    "7",
    *("<reasoning>\n", "\n</answer>\n"),
]
PIECES += ["\n</reasoning>\n<answer>\n", "\n</answer>"]
texts = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)
framed = st.tuples(texts, texts, st.sampled_from(["", "\n", "\n\n", " "])).map(
    lambda t: f"<reasoning>\n{t[0]}\n</reasoning>\n<answer>\n{t[1]}\n</answer>{t[2]}"
)


@settings(max_examples=600, deadline=None)
@given(texts | framed)
@example("<reasoning>\n</reasoning>\n<answer>\n\n</answer>\n")
@example("<reasoning>\n\n</reasoning>\n<answer>\n</answer>\n")
def test_linear_readings_equal_the_regular_expressions(text):
    soft = re.match(r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>", text, re.DOTALL)
    strict = re.match(r"^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$", text, re.DOTALL)
    pairs = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    assert formats._soft(text) == (soft is not None)
    assert formats._strict(text) == (strict is not None)
    assert last_pair(text) == (pairs[-1].strip() if pairs else None)
    assert final_answer(text) == text.split("<answer>")[-1].split("</answer>")[0].strip()


def test_the_two_published_readings_differ_where_tags_nest():
    assert final_answer("<answer>1<answer>2</answer>") == "2"
    assert last_pair("<answer>1<answer>2</answer>") == "1<answer>2"
    assert last_pair("<answer>1</answer><answer>2</answer>") == final_answer("<answer>1</answer> <answer>2") == "2"
    assert last_pair("<answer>2") is None and final_answer("2") == "2" and final_answer("") == ""


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{1} then \\boxed{2", None),
        ("\\boxed 7$ apples", "7"),
        ("\\boxed {7}", "7"),
        ("\\fbox{5}", "5"),
        ("\\boxed{4} \\fbox{5}", "4"),
        ("\\boxed7", None),
        ("no box", None),
        ("\\boxed{}", ""),
        ("", None),
    ],
)
def test_what_a_box_holds(text, inside):
    assert boxed(text) == inside


def test_hostile_texts_take_linear_time():
    texts = ["<reasoning>" + "</reasoning> <answer>" * 40_000, "</reasoning>" + " " * 10**6, "<answer>" * 10**5]
    texts += ["\\boxed{" * 10**5, "{" * 10**6, "<reasoning>\n" + "\n</reasoning>\n<answer>\n" * 40_000]
    start = time.process_time()
    for text in texts:
        formats._soft(text), formats._strict(text), last_pair(text), boxed(text), formats._xml_count(text)
    assert time.process_time() - start < 3.0
