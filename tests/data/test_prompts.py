"""Files of prompts: text with one a line, and JSONL whose further columns describe the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrl.cli.main import run
from mmrl.data.check import check_file
from mmrl.data.read import read_records
from mmrl.errors import UserError


def write(folder: Path, text: str | bytes, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as error:
        read_records(path, **{"require": "prompt", **options})  # type: ignore[arg-type]
    return str(error.value)


def test_a_line_is_a_prompt_and_its_id_is_that_of_the_line(tmp_path: Path) -> None:
    text = "\ufeffa red cube\r\n\n# a comment\n   two cats  \n#not a prompt\nein Bär auf Eis"
    records, problems = read_records(write(tmp_path, text), require="prompt")
    assert [r.prompt for r in records] == ["a red cube", "two cats", "ein Bär auf Eis"]
    assert [r.id for r in records] == ["prompts-1", "prompts-4", "prompts-6"]
    assert {r.task for r in records} == {"image"} and {r.answer for r in records} == {None} and problems == []


@pytest.mark.parametrize("text", ["", "\n \n", "# only\n# comments\n"])
def test_a_file_without_prompts_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert refused(path) == f"data: no prompts in {path}; write one a line"
    good = write(tmp_path, "a cat", "good.txt")
    with pytest.raises(UserError, match="no prompts in"):  # also beside a good file, also with on_error: skip
        read_records([good, path], require="prompt", on_error="skip")


def test_other_encodings_are_named_by_line(tmp_path: Path) -> None:
    path = write(tmp_path, b"a cat\nb\xe4r\n")
    assert "prompts.txt:2: not UTF-8" in refused(path)
    records, problems = read_records(path, require="prompt", on_error="skip")
    assert len(records) == 1 and len(problems) == 1


def test_a_text_file_is_no_data_for_rewards_that_need_answers(tmp_path: Path) -> None:
    assert "holds prompts only" in refused(write(tmp_path, "a cat"), require="answer")


GENEVAL = {
    "tag": "two_object",
    "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 1}],
    "exclude": [{"class": "cat", "count": 1}],
    "prompt": "a photo of a bench and a dog",
}


def test_metadata_of_the_picture_lands_in_meta(tmp_path: Path) -> None:
    path = write(
        tmp_path, json.dumps(GENEVAL) + "\n" + json.dumps({"prompt": "x", "meta": {"a": 1}, "b": 2}), "g.jsonl"
    )
    (first, second), _ = read_records(path, require="prompt")
    assert first.prompt == GENEVAL["prompt"] and first.task == "image" and first.id == "g-1"
    assert first.meta == {key: GENEVAL[key] for key in ("tag", "include", "exclude")}
    assert second.meta == {"a": 1, "b": 2}


def test_a_row_that_says_it_is_a_picture_needs_no_mode(tmp_path: Path) -> None:
    row = {"task": "image", "prompt": "x", "answer": "y", "tag": "t"}
    (record,), _ = read_records(write(tmp_path, json.dumps(row), "a.jsonl"))
    assert record.meta == {"tag": "t"} and record.answer == "y"
    assert "unknown field 'tag'" in refused(
        write(tmp_path, json.dumps({**row, "task": "own"}), "b.jsonl"), require="answer"
    )


def test_an_own_task_and_answer_stay(tmp_path: Path) -> None:
    row = {"task": "digits", "prompt": "seven", "answer": 7}
    (record,), _ = read_records(write(tmp_path, json.dumps(row), "a.jsonl"), require="prompt")
    assert (record.task, record.answer) == ("digits", 7)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "x", "metta": {}}, "did you mean 'meta'?"),
        ({"prompt": "x", "tag": 1, "meta": {"tag": 2}}, "'tag' stands beside 'meta' and in it"),
        ({"prompt": [{"role": "user", "content": "x"}]}, "plain text"),
        ({"tag": 1}, "no prompt"),
    ],
)
def test_bad_rows(row: dict[str, object], part: str, tmp_path: Path) -> None:
    message = refused(write(tmp_path, json.dumps(row), "a.jsonl"))
    assert part in message and message.startswith(f"{tmp_path}/a.jsonl:1")


def test_check_data_understands_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check-data", str(write(tmp_path, "a cat\na cat\na dog"))]) == 0
    assert "prompts for pictures: 3, 2 of them different" in capsys.readouterr().out
    path = write(tmp_path, json.dumps(GENEVAL), "g.jsonl")
    assert run(["check-data", str(path), "--require", "prompt"]) == 0
    shown = capsys.readouterr().out
    assert "tags: two_object 1" in shown and "further fields: include 1, exclude 1" in shown
    assert run(["check-data", str(path)]) == 2  # without the option an answer is missing, and `tag` unknown
    assert run(["check-data", str(write(tmp_path, "", "empty.txt"))]) == 2
    assert "no prompts in" in capsys.readouterr().err


def test_a_report_of_bad_lines(tmp_path: Path) -> None:
    report = check_file(write(tmp_path, b"ok\n\xff\n"))
    assert (report.n_ok, report.n_bad) == (1, 1)
