"""Every way a data file can be wrong gives one line with the place; every accepted spelling gives the same record."""

import json

import pytest
from PIL import Image

from mmrl.data.read import read_records
from mmrl.errors import UserError

GOOD = {"id": "a", "task": "classification", "prompt": "Which?", "answer": "A380"}
BOX = {"id": "b", "task": "detection", "prompt": "Find.", "answer": [[1, 2, 3, 4]]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "img").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 48), "red").save(tmp_path / "img" / f"{name}.png")
    return tmp_path


def write(folder, *rows, name="data.jsonl"):
    path = folder / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def read(folder, *rows, **options):
    return read_records(write(folder, *rows), **options)[0]


# ---- what is accepted ----------------------------------------------------------------------------------------------


def test_all_fields(folder):
    row = {
        "id": 7,
        "task": "detection",
        "prompt": [
            {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Find."}]}
        ],
        "images": ["img/a.png", str(folder / "img" / "b.png")],
        "videos": None,
        "answer": [[0, 0, 0.5, 1]],
        "response": "<answer>x</answer>",
        "frame": "norm1",
        "meta": {"category": "bus"},
    }
    (record,) = read(folder, row)
    assert record.id == "7" and record.task == "detection" and record.prompt == row["prompt"]
    assert record.images == (str(folder / "img" / "a.png"), str(folder / "img" / "b.png"))
    assert record.videos == () and record.answer == [[0, 0, 0.5, 1]] and record.response == "<answer>x</answer>"
    assert record.frame == "norm1" and record.meta == {"category": "bus"}


def test_paths_are_relative_to_the_file_not_to_the_working_folder(folder, monkeypatch):
    monkeypatch.chdir("/")
    (folder / "clip.mp4").touch()
    (record,) = read(folder, {**GOOD, "image": "img/../img/a.png", "video": "clip.mp4"})
    assert record.images == (str(folder / "img" / "a.png"),) and record.videos == (str(folder / "clip.mp4"),)


def test_blank_lines_byte_order_mark_and_windows_line_ends(folder):
    path = folder / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n" + json.dumps(BOX).encode())
    records, problems = read_records(path)
    assert [r.id for r in records] == ["a", "b"] and problems == []


def test_without_an_id_the_line_number_serves(folder):
    first, second = read(folder, "", {k: v for k, v in GOOD.items() if k != "id"}, GOOD)
    assert (first.id, second.id) == ("data-2", "a")


@pytest.mark.parametrize("column", ["image", "image_path"])
def test_official_columns(folder, column):
    boxes = "[{'Position': [254, 303, 291, 365], 'Confidence': 1}, {'Position': [610, 280, 790, 512], 'Confidence': 1}]"
    rows = [
        {column: "img/a.png", "problem": "Detect the bus", "solution": f"<answer>{boxes}</answer>"},
        {column: "img/a.png", "problem": "Which aircraft", "solution": "<answer>A380</answer>"},
        {column: "img/a.png", "problem": "The left one", "solution": "<answer>(12,300),(420,777)</answer>"},
        {column: "img/a.png", "problem": "Detect the cat", "solution": "<answer>No Objects</answer>"},
        {column: "img/a.png", "problem": "How many", "solution": "<answer>3</answer>", "task": "counting"},
    ]
    records = read(folder, *rows)
    assert [r.task for r in records] == ["detection", "classification", "grounding", "detection", "counting"]
    assert records[0].answer == [{"Position": [254, 303, 291, 365]}, {"Position": [610, 280, 790, 512]}]
    assert [r.answer for r in records[1:]] == ["A380", [12, 300, 420, 777], [], "3"]
    assert all(r.images == (str(folder / "img" / "a.png"),) and r.frame == "norm1000" for r in records)
    assert records[1].response == "<answer>A380</answer>" and records[1].prompt == "Which aircraft"


def test_an_explicit_task_wins(folder):
    (record,) = read(folder, {"problem": "p", "solution": "<answer>(1,2),(3,4)</answer>", "task": "classification"})
    assert record.task == "classification" and record.answer == "(1,2),(3,4)"
    (record,) = read(folder, {"prompt": "p", "answer": {"any": ["thing"]}, "task": "poetry"})
    assert record.answer == {"any": ["thing"]}


def test_lisa_conversations(folder):
    path = folder / "img" / "a.png"
    row = {
        "id": "lisa_0",
        "conversations": [
            {"from": "user", "value": f"<img>{path}</img>\n Output the bounding box of the instruction: left."},
            {"from": "assistant", "value": "(12,300),(420,777)"},
        ],
    }
    (record,) = read(folder, row)
    assert record.images == (str(path),) and record.task == "grounding" and record.answer == [12, 300, 420, 777]
    assert record.prompt == "Output the bounding box of the instruction: left."
    assert record.response == "(12,300),(420,777)"


def test_llava_conversations(folder):
    human, gpt = {"from": "human", "value": "<image><image>\nSame?"}, {"from": "gpt", "value": "yes"}
    row = {"id": 1, "image": ["img/a.png", "img/b.png"], "conversations": [human, gpt], "accu_reward_method": "mcq"}
    (record,) = read(folder, row)
    assert record.prompt == "Same?" and record.answer == "yes" and len(record.images) == 2
    assert record.meta == {"accu_reward_method": "mcq"}
    between = {"from": "human", "value": "Is <image> like <image> here?"}
    (record,) = read(folder, {**row, "conversations": [{"role": "system", "content": "Be brief."}, between, gpt]})
    assert record.prompt == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Is "},
                {"type": "image"},
                {"type": "text", "text": " like "},
                {"type": "image"},
                {"type": "text", "text": " here?"},
            ],
        },
    ]


def test_responses_for_imitation(folder):
    row = {"id": "s", "prompt": "Hello", "response": "Hi"}
    (record,) = read(folder, row, require="response")
    assert record.response == "Hi" and record.answer is None
    with pytest.raises(UserError, match="data.jsonl:1 .*record without answer"):
        read(folder, row)
    with pytest.raises(UserError, match="data.jsonl:1 .*record without response"):
        read(folder, GOOD, require="response")


def test_several_files(folder):
    first, second = write(folder, GOOD), write(folder, BOX, name="more.jsonl")
    assert [r.id for r in read_records([first, second])[0]] == ["a", "b"]
    with pytest.raises(UserError, match=r"more.jsonl:1.*duplicate id 'a', first at .*data.jsonl:1"):
        read_records([first, write(folder, GOOD, name="more.jsonl")])


def test_a_json_list(folder):
    path = folder / "data.json"
    path.write_text(json.dumps([GOOD, BOX], indent=1))
    assert [r.id for r in read_records(path)[0]] == ["a", "b"]
    path.write_text(json.dumps([GOOD, 3]))
    with pytest.raises(UserError, match="data.json:#2: expected one object"):
        read_records(path)
    path.write_text(json.dumps(GOOD))
    with pytest.raises(UserError, match="expected a list of records"):
        read_records(path)
    path.write_text("[\n{,")
    with pytest.raises(UserError, match="data.json: broken JSON at line 2, column 2"):
        read_records(path)


# ---- what is refused -----------------------------------------------------------------------------------------------

BAD = {
    "broken JSON": ('{"id": "x", ', "broken JSON at column"),
    "a list": ("[1, 2]", "expected one object"),
    "NaN": ('{"id": "x", "task": "detection", "prompt": "p", "answer": [[NaN, 0, 1, 1]]}', "NaN is not allowed"),
    "infinity": ('{"id": "x", "task": "t", "prompt": "p", "answer": -Infinity}', "-Infinity is not allowed"),
    "too large": ('{"id": "x", "task": "t", "prompt": "p", "answer": 1e999}', "1e999 is too large"),
    "a field twice": ('{"id": "x", "id": "y"}', "'id' is given twice"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "no answer": ({"id": "x", "task": "detection", "prompt": "p"}, "record without answer"),
    "null answer": ({**GOOD, "answer": None}, "record without answer"),
    "no prompt": ({"id": "x", "task": "t", "answer": 1}, "no prompt"),
    "blank prompt": ({**GOOD, "prompt": "  "}, "the prompt is empty"),
    "prompt of a wrong kind": ({**GOOD, "prompt": 3}, "prompt must be text, or messages"),
    "messages of a wrong kind": ({**GOOD, "prompt": [{"role": "user"}]}, "prompt must be text, or messages"),
    "unknown field": ({**GOOD, "promt": "p"}, "unknown field 'promt'; did you mean 'prompt'"),
    "two names of one field": ({**GOOD, "problem": "p"}, "'prompt' and 'problem' mean the same"),
    "unknown frame": ({**BOX, "frame": "norm100"}, "unknown frame 'norm100'; did you mean 'norm1000'"),
    "meta": ({**GOOD, "meta": [1]}, "meta must be an object"),
    "task": ({**GOOD, "task": 3}, "task must be a name"),
    "response": ({**GOOD, "response": 3}, "response must be text"),
    "missing picture": ({**GOOD, "image": "img/none.png"}, "missing picture /.*/img/none.png"),
    "missing video": ({**GOOD, "videos": ["v.mp4"]}, "missing video /.*v.mp4"),
    "picture of a wrong kind": ({**GOOD, "image": {"a": 1}}, "a picture must be a file path"),
    "impossible path": ({**GOOD, "image": "a\0b"}, "missing picture"),
    "remote picture": ({**GOOD, "image": "https://x.org/a.png"}, "only local files"),
    "swapped x": ({**BOX, "answer": [[5, 2, 3, 4]]}, r"answer\[0\]: x2 < x1 in \[5, 2, 3, 4\]"),
    "swapped y": ({**BOX, "answer": [{"Position": [1, 5, 3, 4]}]}, r"answer\[0\]: y2 < y1"),
    "outside": ({**BOX, "answer": [[1, 2, 3, 4], [0, 0, 10, 1001]]}, r"answer\[1\]: box .* outside its frame norm1000"),
    "negative": ({**BOX, "answer": [[-1, 2, 3, 4]]}, "outside its frame"),
    "outside norm1": ({**BOX, "frame": "norm1"}, r"outside its frame norm1 \(0..1 by 0..1\)"),
    "outside the picture": (
        {**BOX, "frame": "pixel_original", "image": "img/a.png", "answer": [[0, 0, 64, 49]]},
        r"outside its frame pixel_original \(0..64 by 0..48\)",
    ),
    "pixels of no picture": ({**BOX, "frame": "pixel_original"}, "needs a picture"),
    "no box": ({**BOX, "answer": [[1, 2, 3]]}, r"answer\[0\] is no box"),
    "one bare box": ({**BOX, "answer": [1, 2, 3, 4]}, "one bare box; write a list of boxes"),
    "unreadable boxes": ({"id": "x", "task": "detection", "problem": "p", "solution": "bus"}, "not a list of boxes"),
    "a box in text with NaN": (
        {"id": "x", "problem": "p", "solution": "[{'Position': [NaN, 1, 2, 3]}, {'Position': [1, 1, 2, 3]}]"},
        "not a list of boxes",
    ),
    "grounding": ({**BOX, "task": "grounding", "answer": "left"}, "answer is no box"),
    "grounding outside": ({**BOX, "task": "grounding", "answer": [0, 0, 1, 2000]}, "answer: box .* is outside"),
    "empty label": ({**GOOD, "answer": " "}, "empty label"),
    "label of a wrong kind": ({**GOOD, "answer": {"a": 1}}, "must be a label"),
    "count": ({**GOOD, "task": "counting", "answer": 1.5}, "whole number"),
    "conversation without question": ({"conversations": [{"from": "gpt", "value": "x"}]}, "no question"),
    "unknown speaker": ({"conversations": [{"from": "humn", "value": "x"}]}, "speaker 'humn'; did you mean 'human'"),
    "picture marks": (
        {"image": "img/a.png", "conversations": [{"from": "user", "value": "<image><image>?"}]},
        "has 2 <image> marks, the record 1 images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_stop_with_the_place(folder, kind):
    row, message = BAD[kind]
    with pytest.raises(UserError, match=message) as error:
        read(folder, GOOD, row)
    assert str(error.value).startswith(f"{folder / 'data.jsonl'}:2") and "\n" not in str(error.value)


def test_bad_rows_are_left_out_and_listed(folder):
    rows = [row for row, _ in BAD.values()]
    records, problems = read_records(write(folder, GOOD, *rows, BOX), on_error="skip")
    assert [r.id for r in records] == ["a", "b"]
    assert len(problems) == len(rows)
    assert all(f"data.jsonl:{i}" in line for i, line in enumerate(problems, start=2))


def test_a_skipped_row_does_not_take_its_id(folder):
    records, problems = read_records(write(folder, {**GOOD, "answer": " "}, GOOD, GOOD), on_error="skip")
    assert [r.id for r in records] == ["a"]
    assert "duplicate id 'a', first at" in problems[1] and "data.jsonl:2" in problems[1]


def test_bytes_that_are_not_text(folder):
    path = folder / "data.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe{}\n")
    with pytest.raises(UserError, match="data.jsonl:2: not UTF-8"):
        read_records(path)


def test_nothing_to_read(folder):
    with pytest.raises(UserError, match="no such file"):
        read_records(folder / "none.jsonl")
    with pytest.raises(UserError, match="no record in .*empty"):
        read(folder)
    with pytest.raises(UserError, match="all 1 rows are bad, the first: .*data.jsonl:1.*no prompt"):
        read(folder, {"answer": 1}, on_error="skip")
    with pytest.raises(UserError, match="no file given"):
        read_records([])


# ---- tables --------------------------------------------------------------------------------------------------------


def rows_of_datasets(folder):
    return {
        "image": [str(folder / "img" / "a.png"), str(folder / "img" / "b.png")],
        "problem": ["Which?", "The left one"],
        "solution": ["<answer>A380</answer>", "<answer>(1,2),(3,4)</answer>"],
    }


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_tables_of_datasets(folder, kind):
    datasets = pytest.importorskip("datasets")
    columns = rows_of_datasets(folder)
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    path = folder / ("d.parquet" if kind == "parquet" else "saved")
    data.to_parquet(path) if kind == "parquet" else data.save_to_disk(path)
    records, _ = read_records(path)
    assert [r.task for r in records] == ["classification", "grounding"] and records[1].answer == [1, 2, 3, 4]
    for record in records:
        picture = record.images[0]
        size = picture.size if isinstance(picture, Image.Image) else Image.open(picture).size
        assert size == (64, 48)
    assert records[0].id.endswith("-1")


def test_tables_that_cannot_be_read(folder):
    datasets = pytest.importorskip("datasets")
    (folder / "x.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable parquet"):
        read_records(folder / "x.parquet")
    with pytest.raises(UserError, match="not a folder written by"):
        read_records(folder / "img")
    data = datasets.Dataset.from_dict(rows_of_datasets(folder))
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(folder / "splits")
    with pytest.raises(UserError, match="several splits; name one of them, e.g. .*splits/train"):
        read_records(folder / "splits")
    assert len(read_records(folder / "splits" / "test")[0]) == 2
