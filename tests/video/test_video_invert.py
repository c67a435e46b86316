"""Question-answer inversion: every rule, the labels, the draws, and the command."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.cli.main import run
from mmrl.data.read import read_records
from mmrl.data.write import write_rows
from mmrl.errors import UserError
from video.data.files import rows_of
from video.data.invert import NEXTGQA, STAR_SECOND, STAR_START, invert, item_stream, negate
from video.data.invert_file import invert_file, report_path
from video.data.layout import choice_prompt

OPTIONS = ["unwrap it", "share it", "sit down", "play", "gesture"]


# ---- rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, negation",
    [
        ("did", "didn't"),
        ("does", "doesn't"),
        ("do", "don't"),
        ("is", "isn't"),
        ("are", "aren't"),
        ("was", "wasn't"),
        ("were", "weren't"),
    ],
)
def test_nextgqa_negates_the_second_word(word, negation):
    found = negate(f"Why {word}  the Boy {word} so", "nextgqa")
    assert found.question == f"why {negation} the boy {word} so"
    assert found.rule == f"second word: {word}"
    assert set(NEXTGQA) == {"did", "does", "do", "is", "are", "was", "were"}


@pytest.mark.parametrize(
    "start, negation",
    [
        ("did", "didn't"),
        ("was", "wasn't"),
        ("able", "unable"),
        ("would", "wouldn't"),
        ("what will", "what won't"),
        ("what happened", "what didn't happen"),
    ],
)
def test_star_negates_the_start(start, negation):
    found = negate(f"{start.capitalize()} the person after this?", "star")
    assert found.question == f"{negation} the person after this?"
    assert found.rule == f"start: {start}"
    assert list(STAR_START) == ["did", "was", "able", "would", "what will", "what happened"]  # this order


@pytest.mark.parametrize(
    "word, negation", [("did", "didn't"), ("was", "wasn't"), ("able", "unable"), ("would", "wouldn't")]
)
def test_star_then_negates_the_second_word(word, negation):
    found = negate(f"What {word} the person do?", "star")
    assert (found.question, found.rule) == (f"what {negation} the person do?", f"second word: {word}")
    assert set(STAR_SECOND) == {"did", "was", "able", "would"}


@pytest.mark.parametrize(
    ("question", "negated"),
    [
        ("What happened?", "what didn't happen?"),
        ("what  happened, then?", "what didn't happen, then?"),
        ("Was?", "wasn't?"),
    ],
)
def test_a_star_start_may_end_at_a_mark(question, negated):
    assert negate(question, "star").question == negated


def test_in_star_the_start_comes_before_the_second_word():
    assert negate("did would it", "star").question == "didn't would it"
    assert negate("would did it", "star").question == "wouldn't did it"
    assert negate("was did it", "star").rule == "start: was"


@pytest.mark.parametrize(
    "question, rules",
    [
        ("what happened to the cup", "nextgqa"),
        ("what activity did they do", "nextgqa"),  # the third word
        ("did he go", "nextgqa"),  # the first word
        ("why didn't he go", "nextgqa"),
        ("why", "nextgqa"),
        ("", "nextgqa"),
        ("which object was put down", "star"),  # the third word
        ("what willow is it", "star"),
        ("wash what", "star"),  # released: "wasn'th what"
        ("what does he do", "star"),
        ("didn't he go", "star"),
        ("would've he gone", "star"),
        ("what will\N{RIGHT SINGLE QUOTATION MARK}ve he", "star"),
        ("what won't he do", "star"),
    ],
)
def test_where_no_rule_fires(question, rules):
    assert negate(question, rules) is None
    assert invert(question, OPTIONS, 0, rules=rules, stream=random.Random(0)) is None


def test_unknown_rules():
    with pytest.raises(UserError, match="unknown rules 'start'"):
        negate("why did he", "start")


# ---- labels --------------------------------------------------------------------------------------------------------


@given(st.integers(2, 8), st.data(), st.integers(0, 10_000))
def test_all_but_the_old_right_option_are_right(n, data, seed):
    options = [f"option {i}" for i in range(n)]
    right = data.draw(st.integers(0, n - 1))
    new = invert("why did he go", options, right, rules="nextgqa", stream=random.Random(seed))
    assert new.question == "why didn't he go"
    assert 2 <= len(new.options) <= n
    assert new.options.count(options[right]) == 1
    assert set(new.options) <= set(options) and len(set(new.options)) == len(new.options)
    wrong = [i for i in range(len(new.options)) if i not in new.right]
    assert [new.options[i] for i in wrong] == [options[right]]
    assert list(new.right) == sorted(new.right) and len(new.right) == len(new.options) - 1
    assert new.letters.split(",") == ["ABCDEFGH"[i] for i in new.right]


def test_k_is_uniform_and_so_is_the_place_of_the_old_right_option():
    ks, places, kept = Counter(), Counter(), Counter()
    for i in range(4000):
        new = invert("why did he go", OPTIONS, 2, rules="nextgqa", stream=item_stream(0, f"r{i}"))
        ks[len(new.right)] += 1
        kept.update(set(new.options) - {OPTIONS[2]})
        if len(new.options) == 5:
            places[new.options.index(OPTIONS[2])] += 1
    assert set(ks) == {1, 2, 3, 4}
    assert all(abs(n / 4000 - 1 / 4) < 0.03 for n in ks.values())
    assert all(abs(n / sum(places.values()) - 1 / 5) < 0.06 for n in places.values()) and len(places) == 5
    assert all(abs(n / 4000 - 2.5 / 4) < 0.03 for n in kept.values())  # each of four is among k = 2.5 on average


def test_this_item_becomes_this_one_for_ever():
    new = invert("why did he go", OPTIONS, 0, rules="nextgqa", stream=item_stream(0, "4882821564_1"))
    again = invert("why did he go", OPTIONS, 0, rules="nextgqa", stream=item_stream(0, "4882821564_1"))
    assert new == again
    assert (new.options, new.letters) == PINNED
    streams = [item_stream(seed, "4882821564_1") for seed in (1, 2, 3)]
    assert any(invert("why did he go", OPTIONS, 0, rules="nextgqa", stream=one) != new for one in streams)


PINNED = (("share it", "unwrap it", "play", "sit down", "gesture"), "A,C,D,E")


# ---- files ---------------------------------------------------------------------------------------------------------


def row(i, question="why did he go", answer="A", options=OPTIONS, **more):
    meta = {"question": question, "options": options, "ask": "mixed", "type": "CW"}
    prompt = choice_prompt(question, options, "mixed")
    return {"id": f"r{i}", "task": "choice", "prompt": prompt, "answer": answer, "meta": meta, **more}


def test_a_file(tmp_path):
    rows = [row(i) for i in range(40)]
    rows += [row("s", "why oh why"), row("m", answer="A,B"), row("d", options=["x", " X ", "y"])]
    rows += [{"id": "g", "task": "grounding-time", "prompt": "when?", "answer": [[1, 2]]}]
    rows += [row("w", response="<think>.</think><answer>A</answer>")]
    write_rows(rows, tmp_path / "in.jsonl")
    report = invert_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl", rules="nextgqa", share=1.0)
    new = [r for _, r in rows_of(tmp_path / "out.jsonl")]
    assert [r["id"] for r in new] == [r["id"] for r in rows]
    assert new[40:44] == rows[40:44]  # kept as they are
    assert (report.rows, report.inverted) == (45, 41)
    assert report.kept == {
        "drawn, but no rule fires": 1,
        "more than one right option, or only one option": 1,
        "an option that reads like the right one": 1,
        "no task choice with question and options in its meta": 1,
    }
    assert report.by_rule == {"second word: did": 41} and sum(report.by_right.values()) == 41
    assert report.responses_dropped == 1 and "response" not in new[44]
    for r in (*new[:40], new[44]):
        options = r["meta"]["options"]
        assert r["prompt"] == choice_prompt("why didn't he go", options, "mixed")
        wrong = set("ABCDE"[: len(options)]) - set(r["answer"].split(","))
        assert [options["ABCDE".index(letter)] for letter in wrong] == ["unwrap it"]
        assert r["meta"]["inverted"] == {
            "rule": "second word: did",
            "question": "why did he go",
            "right": "unwrap it",
        }
        assert r["meta"]["type"] == "CW"
    told = json.loads(report_path(tmp_path / "out.jsonl").read_text())
    assert told["inverted"] == 41 and told["kept"]["drawn, but no rule fires"] == 1 and len(told["examples"]) == 3
    assert sum(told["by_right"].values()) == 41
    assert {r.task for r in read_records(tmp_path / "out.jsonl")[0]} == {"choice", "grounding-time"}


def test_twice_is_once(tmp_path):
    write_rows([row(i) for i in range(60)], tmp_path / "in.jsonl")
    for share in (0.5, 1.0):
        invert_file(tmp_path / "in.jsonl", tmp_path / "one.jsonl", rules="nextgqa", share=share)
        second = invert_file(tmp_path / "one.jsonl", tmp_path / "two.jsonl", rules="nextgqa", share=share)
        assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
        assert second.inverted == 0


def test_what_becomes_of_a_row_depends_on_seed_and_id_only(tmp_path):
    rows = [row(i) for i in range(200)]
    write_rows(rows, tmp_path / "in.jsonl")
    write_rows(rows[:99:-1], tmp_path / "part.jsonl")
    out = {}
    for name, seed in (("in", 0), ("part", 0), ("in", 1)):
        report = invert_file(tmp_path / f"{name}.jsonl", tmp_path / "out.jsonl", rules="nextgqa", seed=seed)
        assert abs(report.inverted / report.rows - 0.5) < 0.15
        out[name, seed] = {r["id"]: r for _, r in rows_of(tmp_path / "out.jsonl")}
    assert all(out["part", 0][k] == out["in", 0][k] for k in out["part", 0]) and len(out["part", 0]) == 100
    assert out["in", 0] != out["in", 1]
    assert invert_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl", rules="nextgqa", share=0).inverted == 0


def test_the_prompt_asks_for_several_letters_after_an_inversion(tmp_path):
    one = row(0)
    one["meta"]["ask"], one["prompt"] = "single", choice_prompt("why did he go", OPTIONS, "single")
    write_rows([one], tmp_path / "in.jsonl")
    invert_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl", rules="nextgqa", share=1)
    ((_, new),) = rows_of(tmp_path / "out.jsonl")
    assert "letters separated by , if multiple" in new["prompt"] and "select one letter" not in new["prompt"]


def test_columns_of_other_names_do_not_stay_beside_the_new_ones(tmp_path):
    one = row(0)
    one["problem"], one["solution"] = one.pop("prompt"), f"<answer>{one.pop('answer')}</answer>"
    write_rows([one], tmp_path / "in.jsonl")
    invert_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl", rules="nextgqa", share=1)
    (record,), _ = read_records(tmp_path / "out.jsonl")
    assert len(record.answer.split(",")) == len(record.meta["options"]) - 1
    assert record.prompt.startswith("why didn't he go\nA ")


def test_videos_are_still_found_from_another_folder(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    write_rows([row(0, video="a.mp4"), row(1, videos=["a.mp4"])], tmp_path / "in.jsonl")
    invert_file(tmp_path / "in.jsonl", tmp_path / "sub" / "out.jsonl", rules="nextgqa")
    records, _ = read_records(tmp_path / "sub" / "out.jsonl")
    assert [r.videos for r in records] == [(str(tmp_path / "a.mp4"),)] * 2


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    write_rows([row(i) for i in range(8)], tmp_path / "in.jsonl")
    out = tmp_path / "out.jsonl"
    assert run(["data", "invert-questions", str(tmp_path / "in.jsonl"), str(out), "--rules", "nextgqa"]) == 0
    told = capsys.readouterr().out
    assert "8 rows: " in told and "inverted by second word: did" in told and "why didn't he go" in told
    assert out.is_file() and (tmp_path / "out.report.json").is_file()


FAULTS = {
    "no file": (["missing.jsonl", "o.jsonl", "--rules", "star"], "no such file"),
    "no rules": (["in.jsonl", "o.jsonl"], "--rules"),
    "other rules": (["in.jsonl", "o.jsonl", "--rules", "clevrer"], "clevrer"),
    "share": (["in.jsonl", "o.jsonl", "--rules", "star", "--share", "1.5"], "share"),
    "same file": (["in.jsonl", "in.jsonl", "--rules", "star"], "overwritten"),
    "broken": (["broken.jsonl", "o.jsonl", "--rules", "star"], "broken.jsonl:1: broken JSON"),
    "twice": (["twice.jsonl", "o.jsonl", "--rules", "star"], "twice.jsonl:1: the field 'id' is given twice"),
    "empty": (["empty.jsonl", "o.jsonl", "--rules", "star"], "no rows"),
    "no questions": (["texts.jsonl", "o.jsonl", "--rules", "star"], "mmrl data convert"),
    "letter": (["letter.jsonl", "o.jsonl", "--rules", "star"], "letter.jsonl:1: the answer 'F' is no letter"),
    "options": (["options.jsonl", "o.jsonl", "--rules", "star"], "meta.options must be a list of texts"),
    "answer": (["answer.jsonl", "o.jsonl", "--rules", "star"], "answer must be letters"),
    "list": (["list.jsonl", "o.jsonl", "--rules", "star"], "expected an object"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_one_line(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows([row(0)], tmp_path / "in.jsonl")
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "twice.jsonl").write_text('{"id": "a", "id": "b"}')
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "list.jsonl").write_text("[1]")
    write_rows([{"prompt": "a", "answer": "b"}], tmp_path / "texts.jsonl")
    write_rows([row(0, answer="F")], tmp_path / "letter.jsonl")
    write_rows([row(0, answer=3)], tmp_path / "answer.jsonl")
    write_rows([row(0, options=[1, 2])], tmp_path / "options.jsonl")
    arguments, says = FAULTS[case]
    assert run(["data", "invert-questions", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "o.jsonl").exists()
