"""Published layouts: the small hand-written files of `data/` as records, and what is wrong with others."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from video_files import steady, write_video

from mmrl.cli.main import run
from mmrl.data.check import check_file
from mmrl.data.read import read_records
from mmrl.data.write import row_of, shown_path
from mmrl.errors import UserError
from video.data.convert import READERS, convert, convert_file
from video.data.files import moved
from video.data.layout import choice_prompt, indices_of, without_letters

DATA = Path(__file__).parent / "data"
FILES = {
    "nextgqa": "nextgqa/val.csv",
    "star": "star.json",
    "clevrer": "clevrer.json",
    "mmvu": "mmvu.json",
    "video-r1": "video_r1.json",
    "tw-grpo": "tw_grpo.json",
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", steady(4))


def put(path, clip):
    """A real clip, or picture, where a record wants one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.new("RGB", (8, 8)).save(path)
    else:
        shutil.copy(clip, path)


def records(layout, **options):
    return convert(layout, DATA / FILES[layout], **options).records


def by_id(layout, **options):
    return {r.id: r for r in records(layout, **options)}


def test_every_layout_has_a_sample():
    assert set(FILES) == set(READERS)


def test_nextgqa(tmp_path):
    found = by_id("nextgqa", videos=tmp_path)
    first = found["1001_1"]
    assert first.task == "choice" and first.answer == "B"
    assert first.prompt == (
        "why did the child climb onto the chair\nA look outside\nB reach the shelf\nC hide, then jump\n"
        "D wave at the dog\nE sit down\nOutput the thinking process in <think> </think> and final answer "
        "(letters separated by , if multiple) in <answer> </answer> tags."
    )
    assert first.meta["segments"] == [[2.5, 6.0]] and first.meta["duration"] == 30 and first.meta["type"] == "CW"
    assert first.videos == (str(tmp_path / "0042" / "1001.mp4"),)  # its folder of the map
    assert found["1002_7"].answer == "A" and "segments" not in found["1002_7"].meta
    assert found["1002_7"].videos == (str(tmp_path / "1002.mp4"),)
    (tmp_path / "1001.mp4").touch()  # a flat folder of videos
    assert by_id("nextgqa", videos=tmp_path)["1001_1"].videos == (str(tmp_path / "1001.mp4"),)


def test_nextgqa_as_grounding():
    done = convert("nextgqa", DATA / FILES["nextgqa"], task="grounding-time")
    assert {r.id: r.answer for r in done.records} == {"1001_1": [[2.5, 6.0]], "1001_2": [[8.0, 9.5], [20.1, 24]]}
    assert done.left_out == {"no time span": 1}
    assert done.records[0].task == "grounding-time" and "in seconds" in done.records[0].prompt
    assert "reach the shelf" in done.records[0].prompt


def test_files_of_nextqa_give_the_number_of_the_option(tmp_path):
    (tmp_path / "val.csv").write_text("video,question,answer,qid,type,a0,a1,a2,a3,a4\n7,why do so,3,0,CW,a,b,c,d,e\n")
    assert convert("nextgqa", tmp_path / "val.csv").records[0].answer == "D"


def test_star(tmp_path):
    done = convert("star", DATA / FILES["star"], videos=tmp_path)
    assert {r.id: r.answer for r in done.records} == {"Interaction_T1_1": "B", "Sequence_T2_5": "A"}
    assert done.left_out == {"no answer (a test file)": 1}
    one = done.records[0]
    assert one.meta["type"] == "Interaction" and (one.meta["start"], one.meta["end"]) == (2.0, 8.0)
    assert "times" not in one.meta and one.videos == (str(tmp_path / "Interaction_T1_1.mp4"),)
    (tmp_path / "AB12C.mp4").touch()
    assert records("star", videos=tmp_path)[0].videos == (str(tmp_path / "AB12C.mp4"),)
    (tmp_path / "Interaction_T1_1.mp4").touch()  # cut to start and end
    assert records("star", videos=tmp_path)[0].videos == (str(tmp_path / "Interaction_T1_1.mp4"),)
    timed = records("star", videos=tmp_path, times=4)[0]
    assert timed.meta["times"] == [2.0, 4.0, 6.0, 8.0] and timed.videos == (str(tmp_path / "AB12C.mp4"),)
    assert records("star", times=1)[0].meta["times"] == [2.0]


def test_clevrer(tmp_path):
    done = convert("clevrer", DATA / FILES["clevrer"], videos=tmp_path)
    found = {r.id: r for r in done.records}
    assert {k: (r.task, r.answer) for k, r in found.items()} == {
        "10004_0": ("classification", "2"),
        "10004_1": ("classification", "rubber"),
        "10004_2": ("choice", "A,C"),
    }
    assert done.left_out == {"no option is right": 1, "no answer (a test file)": 1}
    folder = tmp_path / "video_10000-11000"
    assert found["10004_2"].videos == (str(folder / "video_10004.mp4"),)
    (tmp_path / "video_10004.mp4").touch()
    assert by_id("clevrer", videos=tmp_path)["10004_2"].videos == (str(tmp_path / "video_10004.mp4"),)
    only = convert("clevrer", DATA / FILES["clevrer"], types=["counterfactual"])
    assert [r.id for r in only.records] == ["10004_2"] and only.left_out["another type"] == 2


def test_mmvu(tmp_path):
    first, second = records("mmvu", videos=tmp_path)
    assert (first.task, first.answer, first.meta["subject"]) == ("open-ended", "Dolly zoom", "Art")
    assert (second.task, second.answer) == ("choice", "C")
    assert second.meta["options"] == ["oxygen", "helium", "carbon dioxide", "argon"]
    assert second.videos == (str(tmp_path / "Chemistry" / "3.mp4"),)


def test_video_r1(tmp_path):
    found = by_id("video-r1", videos=tmp_path)
    assert {k: (r.task, r.answer) for k, r in found.items()} == {
        "2": ("choice", "B"),
        "3": ("regression", "2.5"),
        "4": ("number", "12"),
        "5": ("ocr", "NO ENTRY"),
        "6": ("open-ended", "He turns the egg over."),
    }
    assert found["2"].meta["options"] == ["A bell", "A sign", "A clock"]
    assert found["2"].response == "<think>I see a sign.</think>\n<answer>B</answer>" and found["3"].response is None
    assert found["2"].videos == (str(tmp_path / "LLaVA-Video-178K/a/b.mp4"),) and found["2"].images == ()
    assert found["4"].images == (str(tmp_path / "Math/d.png"),) and found["4"].videos == ()


def test_tw_grpo(tmp_path):
    first, second = records("tw-grpo", videos=tmp_path)
    assert (first.id, first.answer, first.meta["type"]) == ("1001_1", "A,C", "CW")
    assert first.meta["options"] == ["look outside", "reach the shelf", "sit down"]
    assert first.meta["segments"] == [[2.5, 6.0]] and first.videos == (str(tmp_path / "1001.mp4"),)
    assert (second.id, second.answer) == ("tw_grpo-2", "A,B")
    assert second.meta["question"] == "Without the red ball, what will happen?"
    assert second.meta["options"] == ["The two cubes collide", "The cube hits the blue ball"]


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("where", ["beside", "away"])
def test_what_is_written_is_read_back_equal_and_checked(layout, where, tmp_path, clip):
    source = tmp_path / "set" / Path(FILES[layout]).name
    shutil.copytree((DATA / FILES[layout]).parent, source.parent)
    wanted = convert(layout, source)
    for record in wanted.records:
        for path in (*record.images, *record.videos):
            put(Path(path), clip)
    wanted = convert(layout, source).records
    out = (source.parent if where == "beside" else tmp_path / "out") / "made.jsonl"
    lines = convert_file(layout, source, out)
    assert read_records(out)[0] == wanted
    assert not any("warning" in line for line in lines)
    assert f"{len(wanted)} records written" in lines[0]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(path.startswith("/") == (where == "away") for row in rows for path in row.get("videos", []))
    report = check_file(out)
    assert report.problems == [] and report.n_ok == len(wanted)
    tasks = Counter(r.task for r in wanted).most_common()
    assert "tasks: " + ", ".join(f"{t} {n}" for t, n in tasks) in report.lines


def test_missing_videos_are_told_or_left_out(tmp_path):
    shutil.copy(DATA / "star.json", tmp_path)
    lines = convert_file("star", tmp_path / "star.json", tmp_path / "o.jsonl")
    assert any(line.startswith("warning: 2 records name a file that is not there") for line in lines)
    (tmp_path / "Sequence_T2_5.mp4").touch()
    done = convert("star", tmp_path / "star.json", drop_missing=True)
    assert [r.id for r in done.records] == ["Sequence_T2_5"] and done.left_out["video or picture not there"] == 1
    with pytest.raises(UserError, match=r"no record is left \(.*video or picture not there 1"):  # the type is there
        convert("star", tmp_path / "star.json", types=["Interaction"], drop_missing=True)


def test_what_prompts_ask_for():
    said = {ask: records("tw-grpo", ask=ask)[0].prompt for ask in ("single", "multiple", "mixed", "none")}
    assert "(select one letter)" in said["single"] and "(select letters separated by ,)" in said["multiple"]
    assert said["none"] == "why didn't the child climb onto the chair\nA look outside\nB reach the shelf\nC sit down"
    assert choice_prompt("q", ["x"], "none") == "q\nA x"


def test_letters_before_options():
    assert without_letters(["(A) x", "(B) y"]) == ["x", "y"]
    assert without_letters(["A. Lincoln", "Grant"]) == ["A. Lincoln", "Grant"]
    assert without_letters(["A) x", "B) y", "C) z"]) == ["x", "y", "z"]
    assert indices_of("(B),( C )", 3, "here") == [1, 2]


def test_paths(tmp_path):
    out = tmp_path / "o.jsonl"
    assert shown_path(tmp_path / "a" / "v.mp4", out) == "a/v.mp4"
    assert shown_path("/elsewhere/v.mp4", out) == "/elsewhere/v.mp4"
    row = {"video": "v.mp4", "images": ["p.png", "/abs.png"], "prompt": "v.mp4"}
    assert moved(row, tmp_path / "i.jsonl", out) == row
    assert moved(row, tmp_path / "a" / "i.jsonl", out) == {
        "video": "a/v.mp4",
        "images": ["a/p.png", "/abs.png"],
        "prompt": "v.mp4",
    }
    record = records("star")[0]
    assert set(row_of(record, out)) == {"id", "task", "prompt", "videos", "answer", "meta"}


# ---- what is wrong -------------------------------------------------------------------------------------------------


def changed(layout, tmp_path, change):
    """The sample with `change` made to its first row (or the whole list)."""
    rows = json.loads((DATA / FILES[layout]).read_text())
    change(rows)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(rows))
    return path


BAD_ROWS = {
    "star answer": ("star", lambda r: r[0].update(answer="The hat."), "#1: the answer 'The hat.' must be the text"),
    "star times": ("star", lambda r: r[0].update(start=9), "start 9 must come before end 8"),
    "star no second": ("star", lambda r: r[0].update(end="soon"), "must be seconds"),
    "star choices": ("star", lambda r: r[0].update(choices={}), "'choices' must be a list"),
    "star no choice": ("star", lambda r: r[0].update(choices=[{"choice": ""}]), "no text under 'choice'"),
    "star twice": ("star", lambda r: r.append(r[0]), "the id 'Interaction_T1_1' is there twice"),
    "clevrer mark": (
        "clevrer",
        lambda r: r[0]["questions"][2]["choices"][0].update(answer="yes"),
        "'correct' or 'wrong'",
    ),
    "clevrer question": ("clevrer", lambda r: r[0]["questions"].append(3), "a question must be an object"),
    "clevrer no questions": ("clevrer", lambda r: r[0].pop("questions"), "#1: 'questions' must be a list"),
    "mmvu gap": ("mmvu", lambda r: r[1]["choices"].update(A=""), "without a gap"),
    "mmvu letter": ("mmvu", lambda r: r[1].update(answer="E"), "the answer 'E' is no letter of the 4 options"),
    "mmvu type": ("mmvu", lambda r: r[1].update(question_type="multiple choice"), "did you mean 'multiple-choice'"),
    "video-r1 type": ("video-r1", lambda r: r[0].update(problem_type="ocr"), "unknown problem_type 'ocr'"),
    "video-r1 data": ("video-r1", lambda r: r[0].update(data_type="audio"), "unknown data_type 'audio'"),
    "video-r1 options": ("video-r1", lambda r: r[0].update(options=[]), "is no letter of the 0 options"),
    "tw-grpo problem": ("tw-grpo", lambda r: r[1].update(problem="what?\nB x\nA y"), "one option a line"),
    "tw-grpo solution": ("tw-grpo", lambda r: r[0].update(solution="<answer></answer>"), "is no letter of the 3"),
    "no object": ("star", lambda r: r.insert(0, 3), "expected an object"),
    "nothing left": ("star", lambda r: r.__delitem__(slice(0, 2)), "no record is left (no answer (a test file) 1)"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named(case, tmp_path):
    layout, change, says = BAD_ROWS[case]
    path = changed(layout, tmp_path, change)
    with pytest.raises(UserError) as caught:
        convert(layout, path)
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_nextgqa_faults(tmp_path):
    text = (DATA / FILES["nextgqa"]).read_text()
    path = tmp_path / "val.csv"
    path.write_text(text.replace("reach the shelf,1", "reach a shelf,1"))
    with pytest.raises(UserError, match=r"val.csv:2: the answer 'reach a shelf' must be the text of one of"):
        convert("nextgqa", path)
    path.write_text(text)
    with pytest.raises(UserError, match="put gsub_val.json beside it"):
        convert("nextgqa", path, task="grounding-time")
    (tmp_path / "gsub_val.json").write_text('{"1001": []}')
    with pytest.raises(UserError, match="have no 'location'"):
        convert("nextgqa", path)
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="not a readable CSV"):
        convert("nextgqa", path)


def test_a_right_option_that_stands_there_twice_is_left_out(tmp_path):
    """NExT-GQA's test.csv has one such question; its span is as good as any other."""
    alike = {"an option that reads like the right one": 1}
    text = (DATA / FILES["nextgqa"]).read_text().replace("look outside,reach", "reach the shelf,reach")
    (tmp_path / "val.csv").write_text(text)
    shutil.copy(DATA / "nextgqa" / "gsub_val.json", tmp_path)
    done = convert("nextgqa", tmp_path / "val.csv")
    assert done.left_out == alike and [r.id for r in done.records] == ["1001_2", "1002_7"]
    assert "1001_1" in {r.id for r in convert("nextgqa", tmp_path / "val.csv", task="grounding-time").records}
    path = changed("star", tmp_path, lambda r: r[0]["choices"][0].update(choice="The cup."))
    assert convert("star", path).left_out["an option that reads like the right one"] == 1


def test_the_number_of_an_option_is_not_its_text(tmp_path):
    """NExT-QA's own files give numbers, also where the options are numbers."""
    head = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
    (tmp_path / "val.csv").write_text(f"{head}\n7,90,64,48,how many dogs are there,1,0,DC,1,2,3,4,5\n")
    assert convert("nextgqa", tmp_path / "val.csv").records[0].answer == "B"


COMMANDS = {
    "layout": (["starr", "star.json", "o.jsonl"], "starr"),
    "file": (["star", "missing.json", "o.jsonl"], "no such file"),
    "folder": (["star", ".", "o.jsonl"], "no such file"),
    "videos": (["star", "star.json", "o.jsonl", "--videos", "nowhere"], "no such folder"),
    "type": (["star", "star.json", "o.jsonl", "--types", "Interacton"], "did you mean 'Interaction'"),
    "option": (["mmvu", "mmvu.json", "o.jsonl", "--times", "4"], "mmvu does not take it"),
    "task": (["nextgqa", "nextgqa/val.csv", "o.jsonl", "--task", "grounding"], "did you mean 'grounding-time'"),
    "ask": (["star", "star.json", "o.jsonl", "--ask", "both"], "both"),
    "out": (["star", "star.json", "o.json"], "name it .jsonl"),
    "same": (["star", "star.json", "star.json"], "overwritten"),
    "broken": (["star", "broken.json", "o.jsonl"], "broken JSON at line 1"),
    "object": (["star", "object.json", "o.jsonl"], "expected a list"),
    "nan": (["star", "nan.json", "o.jsonl"], "NaN is not allowed"),
    "doubled": (["star", "doubled.json", "o.jsonl"], "doubled.json: the field 'start' is given twice"),
    "half": (["star", "half.jsonl", "o.jsonl"], "half.jsonl:1: half a surrogate pair"),
    "huge": (["star", "huge.jsonl", "o.jsonl"], "huge.jsonl:2: the number 1e999 is too large"),
    "below a file": (["star", "star.json", "star.json/o.jsonl"], "o.jsonl: cannot be written"),
    "dropped": (["star", "star.json", "o.jsonl", "--drop-missing"], "no record is left"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_faults_of_the_command_are_one_line(case, tmp_path, capsys, monkeypatch):
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "nan.json").write_text('[{"start": NaN}]')
    (tmp_path / "doubled.json").write_text('[{"start": 1, "start": 2}]')
    (tmp_path / "half.jsonl").write_text('{"question": "\\ud83d"}\n')
    (tmp_path / "huge.jsonl").write_text('\n{"start": 1e999}\n')
    arguments, says = COMMANDS[case]
    assert run(["data", "convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "o.jsonl").exists()


def test_the_commands_one_after_another(tmp_path, capsys, monkeypatch, clip):
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in ("0042/1001.mp4", "1002.mp4"):
        put(tmp_path / "nextgqa" / name, clip)
    assert run(["data", "convert", "nextgqa", "nextgqa/val.csv", "n.jsonl", "--videos", "nextgqa"]) == 0
    assert run(["data", "invert-questions", "n.jsonl", "mixed.jsonl", "--rules", "nextgqa", "--share", "1"]) == 0
    told = capsys.readouterr().out
    assert "3 records written" in told and "3 rows: 2 inverted, 1 kept" in told
    assert run(["check-data", "mixed.jsonl"]) == 0
    assert "3 good records, 0 bad" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["convert"], ["convert", "star"], ["invert-questions"], ["turn"]])
def test_too_little_said(arguments, capsys):
    assert run(["data", *arguments]) == (2 if arguments else 0)
    assert capsys.readouterr().err.count("\n") <= 1


def test_the_page_shows_every_layout_and_a_record_that_is_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "data_tools.md").read_text()
    for layout in READERS:
        assert f"mmrl data convert {layout} " in page and f"| `{layout}` |" in page
    (shown,) = (line.strip() for line in page.splitlines() if line.startswith('    {"id"'))
    (tmp_path / "shown.jsonl").write_text(shown + "\n")
    (record,), _ = read_records(tmp_path / "shown.jsonl")
    meta = record.meta
    assert record.prompt == choice_prompt(meta["question"], meta["options"], meta["ask"]) and record.answer == "B"


def test_the_command_offers_every_layout():
    from mmrl.cli.data import Ask, Layout
    from video.data.layout import ASK

    assert set(Layout) == set(READERS) and set(Ask) == set(ASK)
