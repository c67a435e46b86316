"""Records as rows of a file, and files that are written whole or not at all."""

import json
import os

import pytest

from mmrl.data.read import read_records
from mmrl.data.records import Record
from mmrl.data.write import row_of, shown_path, write_rows, write_text
from mmrl.errors import UserError


def test_records_come_back_equal(tmp_path):
    out = tmp_path / "set" / "data.jsonl"
    for name in ("set/a.mp4", "b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    videos = (str(tmp_path / "set" / "a.mp4"), str(tmp_path / "b.mp4"))
    records = [
        Record("t", "sums", "Wie groß?", answer={"n": [1, 2]}, meta={"level": 2}),
        Record("v", "choice", "Which?", videos=videos, answer="B", response="<answer>B</answer>"),
        Record("b", "detection", "Find.", answer=[[0, 0, 0.5, 1]], frame="norm1"),
    ]
    write_rows([row_of(record, out) for record in records], out)
    assert read_records(out)[0] == records
    first, second, third = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert list(first) == ["id", "task", "prompt", "answer", "meta"] and "groß" in out.read_text(encoding="utf-8")
    assert second["videos"] == ["a.mp4", str(tmp_path / "b.mp4")] and third["frame"] == "norm1"


def test_paths_go_by_the_file_that_names_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_path("set/a.mp4", tmp_path / "set" / "o.jsonl") == "a.mp4"
    assert shown_path("a.mp4", tmp_path / "set" / "o.jsonl") == str(tmp_path / "a.mp4")


def test_what_stood_there_stays_whole(tmp_path, monkeypatch):
    out = tmp_path / "o.jsonl"
    write_text("old", out)
    with pytest.raises(UserError, match="o.jsonl: cannot be written"):
        write_rows([{"prompt": "half \ud83d"}], out)
    with monkeypatch.context() as patched, pytest.raises(UserError, match=r"o.jsonl: cannot be written \(full\)"):
        patched.setattr(os, "replace", fails)
        write_text("new", out)
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


def fails(*_):
    raise OSError("full")


def test_folders_are_made_on_request_only(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_text("a", tmp_path / "new" / "o.txt")
    write_text("a", tmp_path / "new" / "o.txt", parents=True)
    assert (tmp_path / "new" / "o.txt").read_text() == "a"
    with pytest.raises(UserError, match="cannot be written"):
        write_text("a", tmp_path / "new" / "o.txt" / "below.txt", parents=True)
