"""Readers of published layouts and the converter, on small files in those layouts."""

import csv
import json
import subprocess
import sys

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from dlm.rewards import catalogue  # noqa: F401  (registers the rewards that `Rewards` names)
from dlm.rewards.correct import is_correct
from dlm.tasks import convert, countdown, gsm8k, math, sudoku4
from mmrl.config import Rewards
from mmrl.data.read import read_records
from mmrl.errors import UserError
from mmrl.rewards.score import Scorer

GSM = [
    {
        "question": "Ann has 4 apples and buys 3 bags of 6. How many has she?",
        "answer": "The bags hold 3*6 = <<3*6=18>>18 apples.\nShe has 4+18 = <<4+18=22>>22 apples.\n#### 22",
    },
    {"question": "A car costs $1,200. What do two cost?", "answer": "2*1200=<<2*1200=2400>>2400\n#### 2,400"},
]
MATH = [
    {
        "problem": "What is $\\frac14+\\frac14$?",
        "level": "Level 2",
        "type": "Prealgebra",
        "solution": "Add them: $\\frac24=\\boxed{\\frac{1}{2}}$.",
    },
    {"problem": "Find $x$.", "level": "Level ?", "type": "Algebra", "solution": "Not \\boxed{4} but $\\boxed{5}$."},
]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def as_json(path, rows):
    path.write_text(json.dumps(rows))
    return path


def as_parquet(path, rows):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def as_folder(path, rows):
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


LAYOUTS = {"a.jsonl": jsonl, "a.json": as_json, "a.parquet": as_parquet, "a": as_folder}


@pytest.mark.parametrize("name", LAYOUTS)
def test_gsm8k(tmp_path, name):
    first, second = gsm8k.read(LAYOUTS[name](tmp_path / name, GSM))
    assert (first.task, first.answer, second.answer) == ("gsm8k", "22", "2,400")
    assert (
        first.prompt.endswith(GSM[0]["question"])
        and "<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>" in first.prompt
    )
    assert first.response == (
        "<reasoning>\nThe bags hold 3*6 = 18 apples.\nShe has 4+18 = 22 apples.\n</reasoning>\n"
        "<answer>\n22\n</answer>\n"
    )
    assert first.id == "gsm8k:a:1" and first.meta == {"source": "gsm8k", "style": "d1"}


def test_gsm8k_plain(tmp_path):
    record = gsm8k.read(jsonl(tmp_path / "a.jsonl", GSM), style="plain")[0]
    assert record.prompt == GSM[0]["question"] and record.response.endswith("22 apples.\n#### 22")


@pytest.mark.parametrize("name", LAYOUTS)
def test_math(tmp_path, name):
    first, second = math.read(LAYOUTS[name](tmp_path / name, MATH))
    assert (first.answer, second.answer) == ("\\frac{1}{2}", "5")
    assert first.meta == {"source": "math", "style": "d1", "level": 2, "type": "Prealgebra"}
    assert "level" not in second.meta and second.meta["type"] == "Algebra"
    assert first.prompt.endswith(MATH[0]["problem"]) and "<answer>\n\\boxed{...}\n</answer>" in first.prompt
    assert first.response.endswith("\n</reasoning>\n<answer>\n\\boxed{\\frac{1}{2}}\n</answer>\n")


def test_math_as_first_released_and_as_the_500(tmp_path):
    folder = tmp_path / "train"
    for i, row in enumerate(MATH):
        (folder / row["type"].lower()).mkdir(parents=True, exist_ok=True)
        (folder / row["type"].lower() / f"{i}.json").write_text(json.dumps(row))
    assert [r.answer for r in math.read(folder)] == ["5", "\\frac{1}{2}"]  # algebra before prealgebra
    row = {"problem": "p", "solution": "s", "answer": "3\\sqrt{13}", "subject": "Precalculus", "level": 2}
    record = math.read(jsonl(tmp_path / "b.jsonl", [row]), style="plain")[0]
    assert (record.answer, record.meta["level"], record.meta["type"]) == ("3\\sqrt{13}", 2, "Precalculus")
    assert (record.prompt, record.response) == ("p", "s")


def test_countdown(tmp_path):
    rows = [{"nums": [3, 7, 5], "target": 22}, {"nums": [1, 2, 3, 4], "target": 10}]
    assert [r.answer for r in countdown.read(as_parquet(tmp_path / "a.parquet", rows))] == [
        {"numbers": [3, 7, 5], "target": 22},
        {"numbers": [1, 2, 3, 4], "target": 10},
    ]
    record = countdown.read(jsonl(tmp_path / "b.jsonl", [{"input": "30,100,93", "output": "23"}]))[0]
    assert record.answer == {"numbers": [30, 100, 93], "target": 23} and record.response is None
    assert "30, 100, 93" in record.prompt and is_correct("<answer>30+93-100</answer>", record)


def test_sudoku(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Puzzle", "Solution"], PUZZLE])
    record = sudoku4.read(tmp_path / "a.csv")[0]
    assert record.answer == {"puzzle": PUZZLE[0], "solution": PUZZLE[1]}
    assert PUZZLE[0] in record.prompt and is_correct(record.response, record)


PUZZLE = ["3000040221004021", "3214143221434321"]


@pytest.mark.parametrize(("read", "rows"), [(gsm8k.read, GSM), (math.read, MATH)])
def test_published_solutions_earn_everything(tmp_path, read, rows):
    """The demonstrations are right, and every format reward of the task gives its full value."""
    records = read(jsonl(tmp_path / "a.jsonl", rows))
    with Scorer(Rewards(), tasks=[records[0].task]) as scorer:
        scored = scorer.score([r.response for r in records], records, [{}] * 2)
    full = [0.5, 0.5, 0.5, 0.5, 2.0] if records[0].task == "gsm8k" else [2.0, 1.0]
    assert scored.reward_nk[0].tolist() == full
    assert all(is_correct(r.response, r) for r in records)


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (gsm8k.read, {"question": "q", "answer": "no mark"}, "no final number behind ####"),
        (gsm8k.read, {"question": "q", "answer": "x ####"}, "no final number behind ####"),
        (gsm8k.read, {"problem": "q", "answer": "#### 1"}, "no text in column 'question'; found problem, answer"),
        (gsm8k.read, {"question": " ", "answer": "#### 1"}, "no text in column 'question'"),
        (math.read, {"problem": "p", "solution": "no box"}, "the solution has no \\\\boxed"),
        (math.read, {"problem": "p", "solution": "\\boxed{1"}, "the solution has no \\\\boxed"),
        (countdown.read, {"numbers": [1], "target": 1}, "expected columns nums and target"),
        (countdown.read, {"nums": [1, "x"], "target": 1}, "expected columns nums and target"),
        (sudoku4.read, {"Puzzle": "0" * 16, "Solution": PUZZLE[1]}, "is no 4x4 puzzle with"),
        (sudoku4.read, {"Puzzle": PUZZLE[0], "Solution": PUZZLE[1][::-1]}, "is no 4x4 puzzle with"),
        (sudoku4.read, {"Puzzle": "x" * 16, "Solution": PUZZLE[1]}, "is no 4x4 puzzle with"),
    ],
)
def test_bad_rows_are_named_by_their_place(tmp_path, read, row, message):
    with pytest.raises(UserError, match=message) as caught:
        read(jsonl(tmp_path / "a.jsonl", [row]))
    assert "a.jsonl:1: " in str(caught.value) and "\n" not in str(caught.value)


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        gsm8k.read(tmp_path / "none.jsonl")
    for name, content, message in [
        ("a.jsonl", b"", "no record in"),
        ("b.jsonl", b"{", "b.jsonl:1: broken JSON"),
        ("c.jsonl", b"[1]\n", "c.jsonl:1: expected an object"),
        ("d.jsonl", b"\xff\n", "not UTF-8"),
        ("e.parquet", b"x", "not a readable parquet file"),
        ("f.csv", b"\xff\n\xff", "not a readable CSV file"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            gsm8k.read(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a folder without data"):
        gsm8k.read(tmp_path / "empty")
    with pytest.raises(UserError, match="style must be one of plain, d1"):
        gsm8k.read(jsonl(tmp_path / "g.jsonl", GSM), style="chat")


def test_the_converter_writes_what_the_reader_reads(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert convert.main(["gsm8k", str(jsonl(tmp_path / "a.jsonl", GSM)), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"2 of 2 records written to {out}\n"
    assert read_records(out)[0] == gsm8k.read(tmp_path / "a.jsonl")
    assert read_records(out, require="response")[0] == read_records(out)[0]


def test_the_converter_picks(tmp_path):
    def kept(*arguments):
        assert convert.main([*map(str, arguments), "--out", str(tmp_path / "out.jsonl")]) == 0
        return [r.answer for r in read_records(tmp_path / "out.jsonl")[0]]

    numbers = [{"nums": [i, 1, 1][: 2 + i % 2], "target": i} for i in range(1, 7)]
    source = jsonl(tmp_path / "c.jsonl", numbers)
    assert [a["target"] for a in kept("countdown", source, "--numbers", 3)] == [1, 3, 5]
    assert [a["target"] for a in kept("countdown", source, "--drop-last", 4)] == [1, 2]
    assert [a["target"] for a in kept("countdown", source, "--last", 4)] == [3, 4, 5, 6]
    assert kept("math", jsonl(tmp_path / "m.jsonl", MATH), "--levels", 1, 2) == ["\\frac{1}{2}"]
    assert len(kept("generated", "sums:train?n=7")) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gsm8k", "none.jsonl"], "no such file none.jsonl"),
        (["generated", "sumss:train"], "did you mean 'sums'"),
        (["generated", "sums:train", "--style", "d1"], "--style: write it into the name of the set"),
        (["generated", "sums:train?n=2", "--levels", "3"], "--levels: only records of math"),
        (["generated", "sums:train?n=2", "--numbers", "3"], "--numbers: only records of countdown"),
        (["generated", "sums:train?n=2", "--last", "1", "--drop-last", "1"], "give one of them"),
        (["generated", "sums:train?n=2", "--last", "-1"], "a number of at least 1"),
        (["generated", "sums:train?n=2", "--drop-last", "2"], "no record is left"),
    ],
)
def test_mistakes_end_with_two_and_one_line(tmp_path, capsys, arguments, message):
    assert convert.main([*arguments, "--out", str(tmp_path / "o.jsonl")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and message in told and told.count("\n") == 1
    assert not (tmp_path / "o.jsonl").exists()


def test_a_place_that_cannot_be_written(tmp_path, capsys):
    assert convert.main(["generated", "sums:train?n=2", "--out", str(tmp_path / "no" / "o.jsonl")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_command(tmp_path):
    command = [
        sys.executable,
        "-m",
        "dlm.tasks.convert",
        "generated",
        "sort:eval?n=3",
        "--out",
        str(tmp_path / "o.jsonl"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(read_records(tmp_path / "o.jsonl")[0]) == 3
