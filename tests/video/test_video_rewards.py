"""Rewards of video tasks: literal numbers, ranges, and model text that must never raise."""

import itertools
import random
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.rewards.checker import OUTPUTS, check_reward
from mmrl.rewards.registry import bind_options, find, option_defaults, registered, task_rewards
from video.rewards import catalogue
from video.rewards.choice import choice_exact_reward, choice_reward, letters_of, soft_score
from video.rewards.format import thinks_then_answers
from video.rewards.number import number_reward, parse_number, regression_reward
from video.rewards.ocr import error_rate, ocr_words_reward
from video.rewards.segments import best_sum, matched_tiou, merged, read_segments, set_tiou, tiou
from video.rewards.similarity import rouge_l, rouge_n, rouge_reward
from video.rewards.texts import common_length, edit_distance
from video.rewards.tiou import tiou_reward
from video.rewards.tracking import read_track, tracking_iou_reward

RECORDS = {
    "choice": Record("c", "choice", "?", answer="A,C,D"),
    "grounding-time": Record("g", "grounding-time", "?", answer=[[2.0, 6.0], [10.0, 12.0]]),
    "tracking": Record("t", "tracking", "?", answer={"0": [0, 0, 10, 10], "8": [10, 10, 20, 20]}),
    "ocr": Record("o", "ocr", "?", answer="NO ENTRY today"),
    "open-ended": Record("e", "open-ended", "?", answer="The cook turns the egg over."),
    "number": Record("n", "number", "?", answer="2.5"),
    "regression": Record("r", "regression", "?", answer=-4),
}
OURS = [name for name, one in registered().items() if one.function.__module__.startswith("video.rewards.")]


def one(function, text, record, **options):
    return function([f"<think>.</think><answer>{text}</answer>"], [record], [{}], **options)[0]


# ---- lettered options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said, official, iou, exact",
    [
        ("A", 1 / 3, 1 / 3, 0),
        ("A,C", 2 / 3, 2 / 3, 0),
        ("D , A\n, C", 1, 1, 1),
        ("A,B", 0, 1 / 4, 0),
        ("A,B,C,D", 0, 3 / 4, 0),
        ("", 0, 0, 0),
        ("a,c,d", 0, 0, 0),
        ("A,A", 1 / 3, 1 / 3, 0),
        ("A,", 0, 1 / 4, 0),
        ("A.", 0, 0, 0),
    ],
)
def test_choice(said, official, iou, exact):
    record = RECORDS["choice"]
    assert one(choice_reward, said, record) == pytest.approx(official)
    assert one(choice_reward, said, record, form="iou") == pytest.approx(iou)
    assert one(choice_exact_reward, said, record) == exact


@pytest.mark.parametrize("answer", ["<answer>A, C,D</answer>", ["D", "C", "A"], "C,A,D"])
def test_right_letters_may_be_written_so(answer):
    assert one(choice_reward, "A,D", Record("c", "choice", "?", answer=answer)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("answer", ["", "A,,B", [], [1], None, {"A": 1}, "<answer></answer>"])
def test_right_letters_that_are_none(answer):
    with pytest.raises(UserError, match="record 'c': answer of a choice must be letters"):
        one(choice_reward, "A", Record("c", "choice", "?", answer=answer))


@given(st.sets(st.sampled_from("ABCDE"), min_size=1), st.sets(st.sampled_from("ABCDE"), min_size=1))
def test_soft_forms_agree_on_subsets_and_iou_is_never_less(right, said):
    right, said = frozenset(right), frozenset(said)
    official, iou = (soft_score(said, right, form=form) for form in ("official", "iou"))
    assert 0 <= official <= iou <= 1
    assert (official == 1) == (iou == 1) == (said == right)
    if said <= right:
        assert official == iou > 0
    if len(right) == 1:
        assert official == float(said == right)


@given(st.permutations("ABCD"))
def test_order_of_letters_means_nothing(order):
    assert letters_of(" , ".join(order)) == frozenset("ABCD")


# ---- format --------------------------------------------------------------------------------------------------------

GOOD = "<think>x</think><answer>A</answer>"


@pytest.mark.parametrize(
    "text, right",
    [
        (GOOD, True),
        (f"Well. {GOOD} \n!! ! ", True),
        ("<think>\n</think> \n <answer>\nA\n</answer>", True),
        ("<think></think><answer></answer>", True),
        ("<think>a</think>b</think><answer>A</answer>B</answer>", True),  # only opening tags are counted
        (GOOD + GOOD, False),
        ("<think>" + GOOD, False),
        (GOOD + "<answer>", False),
        ("<think>x</think><answer>A<answer>B</answer>", False),
        (GOOD + ".", False),
        ("<think>x</think>so<answer>A</answer>", False),
        ("<answer>A</answer><think>x</think>", False),
        ("<answer>A</answer>", False),
        ("<think>x<answer>A</answer>", False),
        ("<think>x</think><answer>A", False),
        ("<think>x</think><answer></answer", False),
        ("", False),
    ],
)
def test_format(text, right):
    assert thinks_then_answers(text) is right
    released = re.search(r"<think>.*?</think>\s*<answer>.*?</answer>[\s!]*$", text, re.DOTALL)
    assert right == bool(released and text.count("<think>") <= 1 and text.count("<answer>") <= 1)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "x", " ", "!", "\n"]), max_size=9))
def test_format_is_the_released_expression(parts):
    text = "".join(parts)
    found = re.search(r"<think>.*?</think>\s*<answer>.*?</answer>[\s!]*$", text.strip(), re.DOTALL)
    once = text.count("<think>") <= 1 and text.count("<answer>") <= 1
    assert thinks_then_answers(text) == bool(found and once)


# ---- segments of time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, segments",
    [
        ("12.5 - 19.3", [(12.5, 19.3)]),
        ("12.5s to 19.3 seconds", [(12.5, 19.3)]),
        ("from 3 until 5", [(3, 5)]),
        ('{"start": 3, "end": 5.5}', [(3, 5.5)]),
        ("{'start_time': 3, 'end_time': 5}, {'start_time': 7, 'end_time': 8}", [(3, 5), (7, 8)]),
        ("starts at 3 sec., ends at 5", [(3, 5)]),
        ("3 ~ 5 or 6s -> 7s", [(3, 5), (6, 7)]),
        ("between 3 and 5 s, then 7-9", [(3, 5), (7, 9)]),
        ("[[1.0, 2.5], [4, 6]]", [(1, 2.5), (4, 6)]),
        ("0:12 to 1:02:03.5", [(12, 3723.5)]),
        ("3\N{EN DASH}5", [(3, 5)]),
        ("5 - 3", []),
        ("3 - 3", []),
        ("-5 to 3", []),
        ("at 12", []),
        ("12345678901 - 2", []),
        ("", []),
    ],
)
def test_segments_in_text(text, segments):
    assert read_segments(text)[0] == segments


def test_pairs_that_are_no_segments_are_counted():
    assert read_segments("5 - 3, 1 - 2") == ([(1, 2)], 2)


def test_tiou():
    assert tiou((0, 4), (2, 6)) == pytest.approx(2 / 6)
    assert tiou((0, 2), (2, 4)) == 0
    assert tiou((0, 10), (2, 4)) == pytest.approx(0.2)
    assert merged([(5, 6), (0, 2), (1, 3)]) == [(0, 3), (5, 6)]
    assert set_tiou([(0, 2), (2, 4)], [(0, 4)]) == 1
    assert set_tiou([(0, 4)], [(2, 3), (6, 8)]) == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    "said, of_set, matched, any_of",
    [
        ("2 - 6, 10 - 12", 1, 1, 1),
        ("10 - 12, 2 - 6", 1, 1, 1),
        ("2 - 6", 4 / 6, 1 / 2, 1),
        ("2 - 12", 6 / 10, 0.4 / 2, 0.4),
        ("2 - 4, 4 - 6, 10 - 12", 1, (0.5 + 1) / 3, 0.5),
        ("20 - 30", 0, 0, 0),
        ("about noon", 0, 0, 0),
        ("6 - 2, 2 - 6", 4 / 6, 1 / 2, 1),
    ],
)
def test_tiou_reward(said, of_set, matched, any_of):
    for several, value in (("set", of_set), ("matched", matched), ("any", any_of)):
        assert one(tiou_reward, said, RECORDS["grounding-time"], several=several) == pytest.approx(value), several


def test_one_segment_is_plain_tiou_in_every_form():
    record = Record("g", "grounding-time", "?", answer=[2, 6])
    for several in ("set", "matched", "any"):
        assert one(tiou_reward, "0 to 4", record, several=several) == pytest.approx(1 / 3)


@pytest.mark.parametrize("answer", [[], [[3, 2]], [[1, 2, 3]], ["1", "2"], 5, [[-1, 2]], [[0, float("inf")]], "1-2"])
def test_true_segments_that_are_none(answer):
    with pytest.raises(UserError, match="record 'g': "):
        one(tiou_reward, "0 to 4", Record("g", "grounding-time", "?", answer=answer))


def test_best_matching_beats_greedy():
    table = [[0.9, 0.8], [0.8, 0.0]]  # greedy takes 0.9 and is left with 0
    assert best_sum(table) == pytest.approx(1.6)
    assert best_sum([]) == best_sum([[]]) == 0


def test_best_matching_is_the_best_of_all_permutations():
    stream = random.Random(0)
    for n, m in itertools.product(range(1, 5), range(1, 5)):
        table = [[stream.choice([0.0, stream.random()]) for _ in range(m)] for _ in range(n)]
        wide = table if n <= m else list(zip(*table, strict=True))
        every = itertools.permutations(range(max(n, m)), min(n, m))
        best = max(sum(row[j] for row, j in zip(wide, chosen, strict=True)) for chosen in every)
        assert best_sum(table) == pytest.approx(best)


SEGMENTS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 20)).map(lambda p: (float(p[0]), float(p[0] + p[1]))),
    min_size=1,
    max_size=5,
)


@given(SEGMENTS, SEGMENTS, st.randoms(use_true_random=False))
def test_measures_of_segments_are_symmetric_and_know_no_order(a, b, stream):
    shuffled = list(a)
    stream.shuffle(shuffled)
    for measure in (set_tiou, lambda x, y: matched_tiou(x, y, n_said=len(x))):
        value = measure(a, b)
        assert 0 <= value <= 1 + 1e-12
        assert measure(b, a) == pytest.approx(value) == measure(shuffled, b)
        assert measure(a, a) == pytest.approx(1)


# ---- boxes per frame -----------------------------------------------------------------------------------------------

FULL = {0.0: (0.0, 0.0, 10.0, 10.0), 8.0: (10.0, 10.0, 20.0, 20.0)}


@pytest.mark.parametrize(
    "text, track",
    [
        ('{"0": [0, 0, 10, 10], "8": [10, 10, 20, 20]}', FULL),
        ("{0: [0,0,10,10], 8: [10,10,20,20]}", FULL),
        ('[{"frame": 0, "bbox_2d": [0, 0, 10, 10]}, {"frame": 8, "bbox_2d": [10, 10, 20, 20]}]', FULL),
        ("[{'time': '0', 'box': [0, 0, 10, 10]}, {'time': 8.0, 'box': [10, 10, 20, 20]}]", FULL),
        ("[[0, 0, 10, 10], [10, 10, 20, 20]]", FULL),
        ('{"0": [0, 0, 10, 10], "8": [10, 10', {0.0: FULL[0.0]}),
        ('{"0": [0, 0, 10, 10], "0": [1, 1, 2, 2]}', {0.0: FULL[0.0]}),
        ('{"0": [0, 0, 10, 10]} [10, 10, 20, 20]', {0.0: FULL[0.0]}),
        ("[0, 0, 10]", {}),
        ("", {}),
    ],
)
def test_tracks_in_text(text, track):
    assert read_track(text, [0.0, 8.0]) == track


@pytest.mark.parametrize(
    "said, value",
    [
        ('{"0": [0, 0, 10, 10], "8": [10, 10, 20, 20]}', 1),
        ('{"0": [0, 0, 10, 5], "8": [10, 10, 20, 20]}', 0.75),
        ('{"8": [10, 10, 20, 20]}', 0.5),  # frame 0 is missing
        ('{"8": [10, 10, 20, 20], "9": [0, 0, 1, 1]}', 0.5),  # frame 9 is not annotated
        ('{"0": [10, 10, 0, 0]}', 0),
        ("[[0, 0, 10, 10]]", 0.5),
        ("here and there", 0),
    ],
)
def test_tracking(said, value):
    assert one(tracking_iou_reward, said, RECORDS["tracking"]) == pytest.approx(value)


def test_a_list_of_boxes_annotates_frames_by_place():
    record = Record("t", "tracking", "?", answer=[None, [0, 0, 10, 10], None, [0, 0, 4, 4]])
    assert one(tracking_iou_reward, '{"1": [0, 0, 10, 10]}', record) == 0.5
    assert one(tracking_iou_reward, "[[0, 0, 10, 10], [0, 0, 4, 4]]", record) == 1


@pytest.mark.parametrize(
    "answer", [{}, [None], {"x": [0, 0, 1, 1]}, {"0": [0, 0, 1]}, {"0": [5, 5, 1, 1]}, {"0": None}, 3, {"-1": [0] * 4}]
)
def test_tracks_that_are_none(answer):
    with pytest.raises(UserError, match="record 't': "):
        one(tracking_iou_reward, "[]", Record("t", "tracking", "?", answer=answer))


# ---- texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said, value",
    [
        ("NO ENTRY today", 1),
        ("NO  ENTRY\ntoday", 1),
        ("NO ENTRY", 2 / 3),
        ("no ENTRY today", 2 / 3),
        ("NO ENTRY for you today", 1 / 3),
        ("EXIT", 0),
        ("a b c d e f g", 0),
        ("", 0),
    ],
)
def test_ocr(said, value):
    assert one(ocr_words_reward, said, RECORDS["ocr"]) == pytest.approx(value)


def test_ocr_options():
    assert one(ocr_words_reward, "no entry TODAY", RECORDS["ocr"], fold_case=True) == 1
    assert one(ocr_words_reward, "NO ENTRI today", RECORDS["ocr"], unit="character") == pytest.approx(11 / 12)
    assert one(ocr_words_reward, "STOP", Record("o", "ocr", "?", answer=["HALT", "STOP"])) == 1
    assert error_rate(list("abcdef"), list("ab")) == 2


@pytest.mark.parametrize(
    "said, value",
    [
        ("the cook turns the egg over", 1),
        ("The cook: turns the egg", 10 / 11),  # LCS 5, 5 words against 6
        ("over the egg", 4 / 9),  # LCS 2 ("the egg"), 3 words against 6
        ("nothing", 0),
        ("", 0),
    ],
)
def test_rouge_l(said, value):
    assert one(rouge_reward, said, RECORDS["open-ended"]) == pytest.approx(value)


def test_rouge_of_runs():
    said, right = ["the", "cat", "the"], ["the", "cat", "sat"]
    assert rouge_n(said, right, 1) == pytest.approx(2 / 3)  # the, cat
    assert rouge_n(said, right, 2) == pytest.approx(1 / 2)  # "the cat" of two pairs each
    assert rouge_l(said, right) == pytest.approx(2 / 3)
    record = Record("e", "open-ended", "?", answer=["the cat sat", "a dog"])
    assert one(rouge_reward, "The cat the", record, kind="mean") == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    assert one(rouge_reward, "A dog!", record) == 1


def test_rouge_needs_a_word():
    with pytest.raises(UserError, match="no letter or digit"):
        one(rouge_reward, "x", Record("e", "open-ended", "?", answer="..."))


WORDS = st.lists(st.sampled_from("abc"), max_size=12)


@given(WORDS, WORDS)
def test_bits_give_what_the_usual_tables_give(a, b):
    edits = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    common = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if i == 0 or j == 0:
                edits[i][j] = i + j
                continue
            same = a[i - 1] == b[j - 1]
            edits[i][j] = min(edits[i - 1][j] + 1, edits[i][j - 1] + 1, edits[i - 1][j - 1] + (not same))
            common[i][j] = common[i - 1][j - 1] + 1 if same else max(common[i - 1][j], common[i][j - 1])
    assert edit_distance(a, b) == edits[-1][-1]
    assert common_length(a, b) == common[-1][-1]


# ---- numbers -------------------------------------------------------------------------------------------------------


def test_numbers():
    assert [parse_number(t) for t in ("-3.5", " 7. ", "1,200.5", ".5", "1,20", "7 m", "1e5", "")] == [
        -3.5,
        7,
        1200.5,
        0.5,
        None,
        None,
        None,
        None,
    ]
    said = ("2.5", "2.504", "2.51", "two", "")
    assert [one(number_reward, t, RECORDS["number"]) for t in said] == [1, 1, 0, 0, 0]
    assert one(number_reward, "2.51", RECORDS["number"], decimals=1) == 1
    assert [one(regression_reward, t, RECORDS["regression"]) for t in ("-4", "-3", "-5", "4", "x")] == [
        1,
        0.75,
        0.75,
        0,
        0,
    ]
    zero = Record("r", "regression", "?", answer=0)
    assert [one(regression_reward, t, zero) for t in ("0", "0.1")] == [1, 0]


# ---- every reward of this package ----------------------------------------------------------------------------------


def settings():
    """Every reward with every value of every option that has a few."""
    for name in OURS:
        function = find(name).function
        hints = typing.get_type_hints(function)
        yield name, {}
        for option in option_defaults(function, name):
            values = typing.get_args(hints[option]) or ((True, False) if hints[option] is bool else (0, 5))
            yield from ((name, {option: value}) for value in values)


def test_the_catalogue_is_whole():
    assert set(OURS) == {name for names in catalogue.AUTO.values() for name in names} | {"choice_exact"}
    for task in RECORDS:
        assert task_rewards(task) == catalogue.AUTO[task]
        assert "think_format" in task_rewards(task)


@pytest.mark.parametrize("name, options", settings(), ids=str)
def test_the_contract_is_kept_on_difficult_text(name, options):
    definition = find(name)
    records = [r for r in RECORDS.values() if definition.applies(r.task)]
    function = definition.function
    checked = check_reward(f"{function.__module__}:{function.__name__}", options=options, records=records)
    assert checked.problems == []
    values = definition.function(list(OUTPUTS.values()), [records[0]] * len(OUTPUTS), [{}] * len(OUTPUTS), **options)
    assert all(isinstance(v, float) and 0 <= v <= 1 for v in values)


TEXT = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            ["<think>", "</think>", "<answer>", "</answer>", "[", "]", "{", "}", '"', ",", "-", "A", "B,C"]
        ),
        st.sampled_from(
            [" to ", "12", "3.5", "0:12", ": ", "99999999999999999999", "\ud800", "-", "\N{ARABIC-INDIC DIGIT TWO}"]
        ),
    ),
    max_size=25,
).map("".join)


@given(TEXT)
def test_no_text_raises_and_values_stay_in_range(text):
    for name in OURS:
        definition = find(name)
        for record in RECORDS.values():
            if definition.applies(record.task):
                (value,) = definition.function([text], [record], [{}])
                assert 0 <= value <= 1, (name, value)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "1 - " * 30_000, "0:" * 50_000, " " * 100_000, '"1": ' * 30_000, "<think>" * 20_000, "a " * 50_000],
)
def test_long_text_takes_no_time(text):
    import time

    start = time.perf_counter()
    for name in OURS:
        definition = find(name)
        record = next(r for r in RECORDS.values() if definition.applies(r.task))
        definition.function([f"<think></think><answer>{text}</answer>"], [record], [{}])
    assert time.perf_counter() - start < 2


def test_wrong_options_are_named():
    for name, options, says in (
        ("choice", {"form": "jaccard"}, "form"),
        ("tiou", {"several": "greedy"}, "several"),
        ("rouge", {"knd": "l"}, "did you mean 'kind'"),
    ):
        with pytest.raises(UserError, match=says):
            bind_options(find(name), options)


def test_the_page_names_every_reward_and_option():
    page = (Path(__file__).parents[2] / "docs" / "video_rewards.md").read_text()
    rows = {row.split("|")[1].strip(" `"): row for row in re.findall(r"(?m)^\| `.*$", page)}
    for name in OURS:
        assert "formula only" in rows[name]
        assert (find(name).tasks[0] if find(name).tasks else "every") in rows[name].split("|")[2]
        for option in option_defaults(find(name).function, name):
            assert f"`{option}`" in rows[name], (name, option)
    for task, names in catalogue.AUTO.items():
        assert f"{task} = " + " + ".join(f"`{n}`" for n in names) in page


def test_nothing_here_loads_torch():
    modules = "video.rewards.catalogue, video.data.convert, video.data.invert_file, mmrl.cli.main"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
