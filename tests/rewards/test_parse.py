"""Reading completions: what is understood, what is dropped, and that nothing ever raises or takes long."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.boxtext import Detection, parse_box_list, parse_corners, parse_four
from mmrl.rewards.parse import answer_only, answer_text, boxes, official_answer_text, official_boxes, well_formed

ONE = Detection((1, 2, 3, 4), 0.5)
TWO = Detection((5, 6, 7, 8), 0.25)


def wrap(answer, think="t"):
    return f"<think>{think}</think><answer>{answer}</answer>"


def test_answer_text():
    assert answer_text(wrap(" A380\n")) == "A380"
    assert answer_text("A380 ") == "A380"
    assert answer_text("<answer>a</answer><answer>b</answer>") == "a"
    assert answer_text("<think></think><answer>cut off") == "cut off"
    assert answer_text("</answer><answer>a\nb</answer>") == "a\nb"
    assert answer_text("") == ""


@pytest.mark.parametrize(
    "text", ["", "a", "<answer>a</answer>", "<answer>a\n</answer><answer>b</answer>", "<answer>x\ny", "\n<answer>\n"]
)
def test_official_answer_text_is_the_regular_expression(text):
    found = re.search(r"<answer>(.*?)</answer>", text)
    assert official_answer_text(text) == (found[1] if found else text).strip()


@settings(max_examples=300)
@given(st.lists(st.sampled_from(["<answer>", "</answer>", "\n", "a", " "]), max_size=12).map("".join))
def test_official_answer_text_on_shuffled_tags(text):
    found = re.search(r"<answer>(.*?)</answer>", text)
    assert official_answer_text(text) == (found[1] if found else text).strip()


@settings(max_examples=300)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "\n ", "a"]), max_size=9).map("".join))
def test_well_formed_is_the_regular_expression(text):
    expected = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL) is not None
    assert well_formed(text) is expected


def test_well_formed():
    assert well_formed("<think>a\nb</think>\n <answer>not json</answer>")
    assert not well_formed("<think>a</think><answer>b</answer> ")
    assert not well_formed("<answer>b</answer>")
    assert not well_formed("<think></think> so <answer></answer>")
    assert not well_formed("<think></think></answer>")
    assert answer_only(" <answer>7</answer>\n") and not answer_only("7") and not answer_only("<answer>")


@pytest.mark.parametrize(
    "text",
    [
        '[{"Position": [1, 2, 3, 4], "Confidence": 0.5}, {"Position": [5, 6, 7, 8], "Confidence": 0.25}]',
        "[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}, {'Position': [5, 6, 7, 8], 'Confidence': 0.25}]",
        "[{'Position': [1, 2, 3, 4],\n 'Confidence': 0.5},\n{'Position': [5, 6, 7, 8], 'Confidence': 0.25}]",
        "[[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}, {'Position': [5, 6, 7, 8], 'Confidence': 0.25}]]",
        "[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}, {'Position': [5, 6, 7, 8], 'Confidence': 0.25}, ...]",
        "[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}, {'Position': [5, 6, 7, 8], 'Confidence': 0.25}, {'Posit",
        "[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}, {'Position': [5, 6, 7, 8], 'Confidence': 0.25}",
        "```json\n[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}, {'Position': [5, 6, 7, 8], 'Confidence': 0.25}]\n```",
        "[{'Position': (1, 2, 3, 4), 'Confidence': 0.5,}, {'Position': (5, 6, 7, 8), 'Confidence': .25},]",
    ],
)
def test_robust_spellings(text):
    assert boxes(wrap(text)).boxes == (ONE, TWO)
    assert boxes(text).boxes == (ONE, TWO)


def test_apostrophes_survive():
    text = """[{"Position": [1, 2, 3, 4], "Confidence": 0.5, "label": "dog's"}]"""
    assert boxes(wrap(text)).boxes == (Detection((1, 2, 3, 4), 0.5, "dog's"),)
    text = """[{'Position': [1, 2, 3, 4], 'Confidence': 0.5, 'label': "dog's"}]"""
    assert boxes(wrap(text)).boxes == (Detection((1, 2, 3, 4), 0.5, "dog's"),)
    assert official_boxes(wrap(text)).boxes == ()  # the released quote replacement breaks it


def test_bad_records_are_dropped_alone():
    bad = [
        "7",
        "{'Position': [1, 2, 3], 'Confidence': 0.5}",
        "{'Position': [NaN, 2, 3, 4], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, Infinity], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, 1e999], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, 4], 'Confidence': NaN}",
        "{'Position': [1, 2, 3, 4], 'Confidence': 'high'}",
        "{'Position': [1, 2, 3, True], 'Confidence': 0.5}",
        "{'Place': [1, 2, 3, 4], 'Confidence': 0.5}",
        "{'Position': 'left', 'Confidence': 0.5}",
        f"{{'Position': [1, 2, 3, {'9' * 400}], 'Confidence': 0.5}}",
    ]
    for record in bad:
        found = boxes(wrap(f"[{record}, {{'Position': [1, 2, 3, 4], 'Confidence': 0.5}}]"))
        assert found.boxes == (ONE,) and found.dropped == 1 and not found.empty, record


def test_nothing_there():
    for text in ["No Objects", "'No Objects'", "no objects.", "None", "[]", "[ ]", "['No Objects']"]:
        assert boxes(wrap(text)).empty, text
    for text in ["", "nothing", "[{}]", "[7]", "No Objects but a bus"]:
        assert not boxes(wrap(text)).empty, text


def test_official_steps():
    good = "{'Position': [1, 2, 3, 4], 'Confidence': 0.5}"
    assert official_boxes(wrap(f"[[{good}]]")).boxes == (ONE,)
    assert official_boxes(f"[{good}]").boxes == (ONE,)
    assert official_boxes(wrap(f"[{good}, {{'Position': [5, 6, 7")).boxes == (ONE,)  # cut at the last "},"
    assert (
        official_boxes(wrap(f"[{good},\n{good}]")).boxes == ()
    )  # several lines: no match, then the tags are in the way
    assert official_boxes(wrap(f"[{good}, {{'Position': [1]}}]")).boxes == ()  # one bad record empties the list
    assert official_boxes(wrap("[7]")).boxes == ()
    assert official_boxes(wrap("[]")).empty and official_boxes(wrap("No Objects")).empty


def test_corners_take_the_first_box_only():
    assert parse_corners("(1,2),(3,4)") == (1, 2, 3, 4)
    assert parse_corners("( 1 , 2 ) , ( 3 , 4 ),(5,6),(7,8)") == (1, 2, 3, 4)
    assert parse_corners("box (1.5,2),(3,4.25)") == (1.5, 2, 3, 4.25)
    assert parse_corners("(1,2)") is None and parse_corners("(a,2),(3,4)") is None
    assert parse_four("box [1, 2, 3, 4] or [5,6,7,8]") == (1, 2, 3, 4)
    assert parse_four("[1, 2, 3]") is None


ALPHABET = [
    "<think>", "</think>", "<answer>", "</answer>", "[", "]", "{", "}", "(", ")", "'Position'", '"Confidence"', ":",
    ",", "'", '"', "\\", "\n", " ", "1", "-", ".", "e9", "NaN", "None", "```", "...", "é", "\x00", "\ud800",
]  # fmt: skip
noise = st.text(max_size=200) | st.lists(st.sampled_from(ALPHABET), max_size=60).map("".join)


def everything(text):
    boxes(text)
    official_boxes(text)
    well_formed(text)
    answer_only(text)
    parse_corners(text)
    parse_four(text)


@settings(max_examples=300)
@given(noise)
def test_never_raises(text):
    everything(text)
    everything(wrap(text))


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(noise)
def test_never_raises_at_length(text):
    everything(text)
    everything(wrap(text))


@pytest.mark.parametrize(
    "unit",
    ["[", "{", "(", "[[{", "<answer>", "<answer>\n", "<think>", "</think>", "</think> ", "</think><answer>", '"', "'",
     '\\"', "'\\", "-", "1", "1,", "[1,", "(1,2),", "(1", "{'a':", "a.", " ", "\n", "}, ", "```", "1e"],
)  # fmt: skip
def test_linear_time(unit):
    """200,000 characters of the worst kind take well under a second; quadratic time would take minutes."""
    text = (unit * 200_000)[:200_000]
    start = time.perf_counter()
    for whole in (text, "<think></think><answer>" + text, "<answer>[" + text + "]</answer>"):
        everything(whole)
    assert time.perf_counter() - start < 3.0


def test_memory_of_a_parse_is_shared():
    text = "[{'Position': [1, 2, 3, 4], 'Confidence': 0.5}]"
    assert parse_box_list(text) is parse_box_list(text)
