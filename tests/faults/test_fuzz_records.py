"""Random record files through the reader and `mmrl check-data`: never a traceback, and both of one mind."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from fault_mutations import DATES, FUZZ, JUNK, spoilt, spoilt_text
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmrl.cli.main import run
from mmrl.data.read import read_records
from mmrl.errors import UserError

BOXES = "<answer>[{'Position': [10, 20, 300, 400], 'Confidence': 1.0}]</answer>"
TURN = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}
VALID: list[dict[str, Any]] = [
    {"id": "a", "task": "detection", "prompt": "Where?", "images": ["a.png"], "answer": [[1, 2, 300, 400]]},
    {"task": "detection", "prompt": "Where?", "image": "a.png", "answer": [[1, 2, 30, 32]], "frame": "pixel_original"},
    {"task": "detection", "prompt": [TURN], "images": ["a.png"], "answer": [{"Position": [1, 2, 3, 4], "label": "x"}]},
    {"task": "grounding", "prompt": "Where?", "images": ["b.jpg"], "answer": [1, 2, 3.5, 4], "frame": "norm1000"},
    {"task": "classification", "prompt": "Which?", "image_path": "c.gif", "answer": "cat", "response": "a cat"},
    {"task": "counting", "prompt": "How many?", "answer": 3, "meta": {"source": "x", "n": [1, 2]}},
    {"problem": "Find it", "solution": BOXES, "image": "b.jpg"},
    {
        "conversations": [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": BOXES}],
        "image": ["a.png"],
    },
]
ROW = st.builds(lambda row: json.dumps(row, ensure_ascii=False), spoilt(VALID))
LINES = st.builds("\n".join, st.lists(ROW, min_size=1, max_size=4))
ARRAY = st.builds(lambda rows: json.dumps(rows), st.lists(spoilt(VALID), max_size=3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in three formats and a data file to write."""
    root = tmp_path_factory.mktemp("records")
    picture = Image.effect_noise((32, 40), 60).convert("RGB")
    for name in ("a.png", "b.jpg", "c.gif", "d.webp", "e.tiff", "f.bmp"):
        picture.save(root / name)
    return root


def outcome(*arguments: str) -> tuple[int, str]:
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = run(list(arguments))
    return code, told.getvalue()


def check(file: Path, require: str = "answer") -> None:
    """check-data and the reader agree; both say what is wrong in one line."""
    code, told = outcome("check-data", str(file), "--require", require)
    assert code in (0, 2), (code, told)
    assert told == "" if code == 0 else told.startswith("error: ") and told.count("\n") == 1, told
    for on_error in ("stop", "skip"):
        try:
            found, problems = read_records(file, on_error=on_error, require=require)  # type: ignore[arg-type]
        except UserError as error:
            assert code == 2 and str(error), error  # what the reader refuses, check-data has told
        else:
            assert found and (code == 2 or not problems)


@FUZZ
@given(data=spoilt_text(LINES), require=st.sampled_from(["answer", "answer", "response"]))
def test_a_random_jsonl_file(folder: Path, data: bytes, require: str) -> None:
    (folder / "r.jsonl").write_bytes(data)
    check(folder / "r.jsonl", require)


@FUZZ
@given(data=spoilt_text(ARRAY))
def test_a_random_json_file(folder: Path, data: bytes) -> None:
    (folder / "r.json").write_bytes(data)
    check(folder / "r.json")


@FUZZ
@given(rows=st.lists(spoilt(VALID, junk=JUNK | DATES), min_size=1, max_size=3), turn=st.none() | st.integers(0, 10**6))
def test_a_random_table(folder: Path, rows: list[Any], turn: int | None) -> None:
    """turn: a bit of the parquet file to turn."""
    import pyarrow
    import pyarrow.parquet

    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "r.parquet")
    except (pyarrow.ArrowException, OverflowError, TypeError, ValueError):
        return  # nobody can have such a file
    if turn is not None:
        data = bytearray((folder / "r.parquet").read_bytes())
        data[turn // 8 % len(data)] ^= 1 << turn % 8
        (folder / "r.parquet").write_bytes(data)
    check(folder / "r.parquet")


@FUZZ
@given(name=st.sampled_from(["a.png", "b.jpg", "c.gif", "d.webp", "e.tiff", "f.bmp"]), seed=st.integers(0, 2**32))
def test_a_spoilt_picture(folder: Path, name: str, seed: int) -> None:
    draw = random.Random(seed)
    data = bytearray((folder / name).read_bytes())
    for _ in range(draw.choice([1, 1, 2, 20])):
        data[draw.randrange(min(len(data), draw.choice([64, 10**9])))] ^= 1 << draw.randrange(8)
    if draw.random() < 0.3:
        data = data[: draw.randrange(len(data))]
    file = folder / f"spoilt{Path(name).suffix}"
    file.write_bytes(data)
    row = {**VALID[0], "images": [file.name], "frame": draw.choice(["norm1000", "pixel_original"])}
    (folder / "p.jsonl").write_text(json.dumps(row) + "\n")
    code, told = outcome("check-data", str(folder / "p.jsonl"))
    assert code in (0, 2) and told.count("\n") == (code == 2), told
