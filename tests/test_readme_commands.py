"""Every command line of the README is run: installation and make by a dry run, long ones with three steps."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmrl.cli.main import run

ROOT = Path(__file__).resolve().parent.parent
SEED0 = "runs/quickstart-vlm-seed0"


def readme_commands() -> list[list[str]]:
    """The words of each `mmrl` line in the README's shell blocks, without the path of the virtual environment."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    out = []
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].removeprefix(".venv/bin/") == "mmrl":
                out.append(words[1:])
    return out


def shortened(words: list[str]) -> list[str]:
    """Three steps for a quickstart; the plan only where a published model would be downloaded."""
    if words[0] == "quickstart":
        return [*words, "--steps", "3"]
    if words[0] == "train" and "--dry-run" not in words:
        return [*words, "--dry-run"]
    return words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with what the README assumes: records, a picture, a reward, and the run of `make quickstart`."""
    home = tmp_path_factory.mktemp("home")
    (home / "my").mkdir()
    Image.new("RGB", (64, 64), "white").save(home / "scene.png")
    Image.new("RGB", (64, 64), "white").save(home / "my" / "a.png")
    record = {
        "id": "1",
        "task": "detection",
        "prompt": "Where is the 7?",
        "images": ["a.png"],
        "answer": [[12, 30, 56, 60]],
        "frame": "pixel_original",
    }
    for name in ("train", "eval"):
        (home / "my" / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    (home / "my_rewards.py").write_text(
        "def tidy(outputs, records, info):\n    return [1.0 if len(text) <= 200 else 0.0 for text in outputs]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.syspath_prepend(home)
        assert run(["quickstart", "vlm", "--seed", "0", "--steps", "3"]) == 0  # what make quickstart runs
        yield home


def test_the_readme_shows_commands() -> None:
    assert {words[0] for words in readme_commands()} >= {"quickstart", "train", "eval", "generate", "report", "doctor"}


def test_the_run_folder_has_the_names_of_the_documents(folder: Path) -> None:
    here = folder / SEED0
    names = {p.name for p in here.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "samples", "report.html"} <= names
    summary = json.loads((here / "summary.json").read_text())
    assert {"family", "recipe", "seed", "chance", "before", "after", "steps", "seconds"} <= set(summary)
    for part in ("before", "after"):
        assert {"mean_iou", "acc_50", "reward"} <= set(summary[part])
    assert summary["steps"] == 3


def test_every_command_of_the_readme_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = readme_commands()  # in order: later lines read what earlier ones wrote
    for words in commands:
        code = run(shortened(words))
        shown = capsys.readouterr()
        assert code == 0, f"mmrl {' '.join(words)}: {shown.err}"
    assert (folder / "compare.html").is_file()
    answers = json.loads((folder / "answers" / "answers.json").read_text())["answers"]
    assert len(answers) == 4
    assert all((folder / "answers" / answer["image"]).is_file() for answer in answers)


def test_a_taken_run_folder_is_refused_and_resume_needs_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quickstart", "vlm", "--out", str(folder / SEED0), "--steps", "3"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert run(["train", str(folder / SEED0), "out=fresh", "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
