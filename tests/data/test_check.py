"""The report of `mmrl check-data`."""

import json

import pytest
from PIL import Image

from mmrl.data.check import check_file
from mmrl.errors import UserError


def write(folder, rows):
    path = folder / "data.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_report(tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    noise = Image.effect_noise((64, 64), 90)
    noise.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    base = {"task": "detection", "prompt": "12345", "image": "a.png"}
    rows = [
        {**base, "answer": [[0, 0, 5, 5]]},
        {**base, "answer": [], "response": "<answer>No Objects</answer>"},
        {**base, "task": "counting", "prompt": "1234567890", "answer": 3},
        "{broken",
        {**base, "id": "cut one", "image": "cut.png", "answer": [[0, 0, 5, 5]]},
    ]
    report = check_file(write(tmp_path, rows))
    assert (report.n_ok, report.n_bad) == (3, 2)
    text = "\n".join(report.lines)
    assert "3 good records, 2 bad" in text and "tasks: detection 2, counting 1" in text
    assert "pictures decoded: 2" in text and "nothing to find: 1" in text
    assert "5 to 10, median 5" in text and "response to imitate: 1" in text
    assert "data.jsonl:4: broken JSON" in text and "(record 'cut one'): picture" in text and "truncated" in text
    assert len(report.problems) == 2
    limited = check_file(write(tmp_path, rows[:1]), max_side=10)
    assert limited.n_bad == 1 and "20 x 20 pixels exceeds the limit" in limited.problems[0]


def test_many_faults_are_counted(tmp_path):
    report = check_file(write(tmp_path, ["{"] * 60))
    assert report.n_bad == len(report.problems) == 60 and report.lines[-1] == "... and 10 more bad rows"


def test_messages_have_a_length_too(tmp_path):
    prompt = [
        {"role": "system", "content": "123"},
        {"role": "user", "content": [{"type": "text", "text": "45"}]},
    ]
    report = check_file(write(tmp_path, [{"task": "counting", "prompt": prompt, "answer": 1}]))
    assert any("5 to 5" in line for line in report.lines)


def test_no_file_or_nothing_in_it(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        check_file(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="it is empty"):
        check_file(write(tmp_path, []))
