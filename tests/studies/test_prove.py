"""The runner of studies, with a stand-in for `mmrl train`: budgets, resuming, stopping, refusals, what is written."""

from __future__ import annotations

import fcntl
import json
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import prove
import pytest
import study_figure
import study_file
import study_page
from study_jobs import Jobs, longest
from study_results import collect

from mmrl import config_io
from mmrl.errors import UserError

FAKE = [sys.executable, str(Path(__file__).with_name("fake_mmrl.py"))]
STUDY = {
    "title": "A study",
    "config": "some/config",
    "metrics": ["score", "reward"],
    "seeds": [0, 1],
    "common": ["log.tensorboard=false"],
    "arms": {
        "shown": {"label": "shown"},
        "reward": {"label": "by reward", "note": "as it is"},
        "shuffled": {
            "label": "shuffled",
            "budget": "reward",
            "overrides": ["train.control=shuffled"],
            "most_gain": 0.02,
        },
    },
}


def study(**changes) -> study_file.Study:
    arms = {k: STUDY["arms"][k] for k in ("reward", "shuffled")}
    return study_file.Study.model_validate({**STUDY, "arms": arms, **changes})


def jobs(folder: Path, told: list[str], *, made: study_file.Study | None = None, steps: int | None = None) -> Jobs:
    return Jobs(made or study(), [0, 1], folder, 2, steps, told.append, program=FAKE)


def sessions(folder: Path, seed: int, name: str) -> list[str]:
    return (folder / f"seed-{seed}" / name / "sessions").read_text().splitlines()


def test_a_control_gets_the_seconds_of_its_seed(tmp_path: Path) -> None:
    told: list[str] = []
    jobs(tmp_path, told, steps=7).run()
    assert "train.steps=7" in sessions(tmp_path, 1, "reward")[0].split()
    said = sessions(tmp_path, 1, "shuffled")[0].split()
    assert "train.max_seconds=41.000" in said and "train.control=shuffled" in said and "log.tensorboard=false" in said
    assert "train.max_seconds=40.000" in sessions(tmp_path, 0, "shuffled")[0].split()
    assert len(told) == 4 and told[-1].startswith("[4/4] seed ") and "left" not in told[-1]
    assert any("seed 1  by reward  score 0.500 -> 0.688 (+0.188)  2 steps, 41 s  left about" in line for line in told)
    jobs(tmp_path, told, steps=7).run()  # all done: nothing is started again
    assert len(told) == 4 and len(sessions(tmp_path, 0, "reward")) == 1


def test_other_settings_are_refused(tmp_path: Path) -> None:
    jobs(tmp_path, []).run()
    with pytest.raises(UserError, match=r"seed-0/reward: was started with other settings \(train.steps=9\); delete it"):
        Jobs(study(), [0], tmp_path, 1, 9, print, program=FAKE).run()


def test_a_stopped_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while both seeds are in their control: the runs are asked to save, and are resumed later."""
    for seed in (0, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "shuffled.wait").touch()
    slept = time.sleep

    def sleep(seconds: float) -> None:
        begun = all((tmp_path / f"seed-{s}" / "shuffled" / "sessions").exists() for s in (0, 1))
        if begun and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        slept(0.01)

    monkeypatch.setattr(time, "sleep", sleep)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        jobs(tmp_path, told).run()
    monkeypatch.setattr(time, "sleep", slept)
    assert told[-1] == "stopping: 2 runs save first (at most 60 s)"
    assert not (tmp_path / "seed-0" / "shuffled" / "summary.json").exists()
    for seed in (0, 1):
        (tmp_path / f"seed-{seed}" / "shuffled.wait").unlink()
    jobs(tmp_path, told).run()
    assert [line.endswith("--resume") for line in sessions(tmp_path, 0, "shuffled")] == [False, True]
    assert len(sessions(tmp_path, 0, "reward")) == 1


def test_a_run_that_outlived_its_study_is_waited_for(tmp_path: Path) -> None:
    """Whoever holds the lock trains; nobody else starts in the folder."""
    (tmp_path / "seed-0").mkdir()
    told: list[str] = []
    with open(tmp_path / "seed-0" / "reward.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=jobs(tmp_path, told).run)
        thread.start()
        while not (tmp_path / "seed-1" / "shuffled" / "summary.json").exists():
            time.sleep(0.01)
        assert not (tmp_path / "seed-0" / "reward").exists()
        assert "seed 0, reward: still trained by an earlier process; waiting for it" in told
    thread.join()
    assert (tmp_path / "seed-0" / "shuffled" / "summary.json").exists()


def test_a_failing_run_ends_the_study_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "reward.fail").touch()
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "reward.wait").touch()  # would wait for ever; it is ended too
    with pytest.raises(UserError, match=r"seed 1, reward: .* exit code 2: data.train: no such file; mend it \(see "):
        jobs(tmp_path, []).run()
    assert not (tmp_path / "seed-0" / "reward" / "summary.json").exists()


def test_what_is_left_is_shared_among_jobs() -> None:
    assert longest([4, 4, 4, 4, 4], 2) == 12 and longest([1, 4], 2) == 4 and longest([0, 0], 2) == 0


@pytest.fixture
def results(tmp_path: Path) -> dict:
    jobs(tmp_path / "runs", []).run()
    return collect(study(), tmp_path / "runs", [0, 1], command="python studies/prove.py")


def test_the_numbers(results: dict) -> None:
    arms = results["arms"]
    assert arms["reward"]["metrics"]["score"]["gain"]["mean"] == 0.15625  # (2/16 + 3/16) / 2
    assert arms["shuffled"]["metrics"]["score"]["gain"]["max"] == -0.0625
    assert arms["shuffled"]["metrics"]["score"]["behind_main"]["mean"] == 0.21875
    assert results["bounds"] == [{"arm": "shuffled", "most_gain": 0.02, "mean_gain": -0.0625, "holds": True}]
    assert results["runs"]["reward"][1]["curve"] == [
        {"step": 0, "seconds": 0.0, "score": 0.5, "reward": 1.0},
        {"step": 2, "seconds": 41.0, "score": 0.6875, "reward": 1.1875},
    ]
    json.dumps(results, allow_nan=False)


def test_the_page(results: dict) -> None:
    text = study_page.block(results, figure="figures/x.svg")
    assert "| by reward | 2 | 0.500 | 0.656 | +0.156 (0.044) | +0.125 .. +0.188 |  |" in text
    # 0.21875 +- 12.7062 * 0.044194 / sqrt 2
    assert "| -0.062 .. -0.062 | +0.219 [-0.178, +0.616] |" in text
    assert "| best constant answer | | 0.250 | | | | |" in text and "| starting checkpoint | | 0.500 |" in text
    assert "of *shuffled* may be at most +0.02; it is -0.062, the bound holds." in text
    assert "| by reward | 2 (0) | 40.5 (0.7) | 40.5 (0.7) |" in text
    assert "shuffled: had 0.80 times the processor seconds in equal seconds" in text
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))
    results["bounds"][0] |= {"mean_gain": 0.03, "holds": False}
    assert "it is +0.030, **the bound is broken**." in study_page.block(results, figure=None)


def test_the_page_keeps_what_stands_around_it(tmp_path: Path) -> None:
    document = tmp_path / "results.md"
    document.write_text("# A\n<!-- begin s: written by make prove -->\nold\n<!-- end s -->\n\nkept \\1\n")
    study_page.place(document, "s", r"new \2")
    study_page.place(document, "s", r"newer \2")
    assert document.read_text() == (
        "# A\n<!-- begin s: written by make prove -->\nnewer \\2\n<!-- end s -->\n\nkept \\1\n"
    )
    with pytest.raises(UserError, match="needs the two lines"):
        study_page.place(document, "t", "new")


def test_the_figure(results: dict, tmp_path: Path) -> None:
    results["arms"]["shuffled"]["label"] = "a < b"
    study_figure.draw(results, tmp_path / "f" / "x.svg")
    root = ElementTree.parse(tmp_path / "f" / "x.svg").getroot()
    texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "0.656 by reward" in texts and "0.438 a < b" in texts and "100%" in texts
    assert study_figure.apart([10.0, 12.0, 100.0], 16.0) == pytest.approx([10 - 14 / 3, 26 - 14 / 3, 100 - 14 / 3])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial leaves the documents alone; a whole study is published; a broken bound is exit code 1."""
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps({**STUDY, "arms": {k: STUDY["arms"][k] for k in ("reward", "shuffled")}}))
    (tmp_path / "docs").mkdir()
    document = tmp_path / "docs" / "results.md"
    document.write_text("<!-- begin own: written by make prove -->\n<!-- end own -->\n")
    monkeypatch.setattr(prove, "ROOT", tmp_path)
    monkeypatch.setattr(prove, "DOCUMENT", document)
    monkeypatch.setattr(prove, "Jobs", lambda *a, **k: Jobs(*a, **k, program=FAKE))
    common = ["--study", str(file), "--out", str(tmp_path / "runs")]
    assert prove.prove([*common, "--seeds", "0"]) == 0
    assert "a trial" in capsys.readouterr().out and len(document.read_text().splitlines()) == 2
    assert prove.prove(common) == 0
    assert "4 runs (2 seeds x 2), 2 done already" in capsys.readouterr().out
    assert "## A study" in document.read_text() and "figures/prove_own.svg" in document.read_text()
    assert json.loads((tmp_path / "studies" / "results" / "own.json").read_text())["seeds"] == [0, 1]
    assert (tmp_path / "docs" / "figures" / "prove_own.svg").is_file()
    file.write_text(file.read_text().replace("0.02", "-0.5"))
    assert prove.prove(common) == 1


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--study", "nothing"], "no file"),
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--seeds", "1", "1"], "give different numbers"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=said):
        prove.prove(argv)


def test_a_budget_must_name_an_arm_with_steps(tmp_path: Path) -> None:
    arms = {"a": {"label": "a"}, "b": {"label": "b", "budget": "c"}}
    (tmp_path / "s.yaml").write_text(json.dumps({**STUDY, "arms": arms}))
    with pytest.raises(UserError, match="arms.b.budget: no arm 'c'"):
        study_file.read(str(tmp_path / "s.yaml"))


@pytest.mark.parametrize(
    ("least", "holds", "words"), [(0.1, True, "the bound holds"), (0.2, False, "**the bound is broken**")]
)
def test_a_gain_that_must_not_be_smaller(tmp_path: Path, least: float, holds: bool, words: str) -> None:
    arms = {k: dict(STUDY["arms"][k]) for k in ("reward", "shuffled")}
    arms["reward"]["least_gain"] = {"score": least}
    made = study(arms=arms)
    jobs(tmp_path, [], made=made).run()
    found = collect(made, tmp_path, [0, 1], command="x")
    told = {"arm": "reward", "metric": "score", "least_gain": least, "mean_gain": 0.15625, "holds": holds}
    assert found["bounds"][0] == told and found["bounds"][1]["arm"] == "shuffled"
    text = study_page.block(found, figure=None)
    assert f"mean gain of score of *by reward* is to be at least {least:+.2f}; it is +0.156, {words}" in text
    with pytest.raises(ValueError, match="least_gain: 'scor' is not one of the study's metrics"):
        arms["reward"]["least_gain"] = {"scor": 0.1}
        study(arms=arms)


@pytest.mark.parametrize("name", sorted(p.stem for p in study_file.HERE.glob("*.yaml")))
def test_every_study_is_runnable(name: str) -> None:
    """Every arm resolves; those that end by seconds have a learning rate that does not depend on the steps; and the
    results have a place in the document."""
    _, found = study_file.read(name)
    assert found.seeds == [0, 1, 2, 3, 4] and any(a.most_gain == 0.02 for a in found.arms.values())
    for arm in found.arms:
        config = config_io.resolve(found.config, study_file.overrides(found, arm, seed=3, steps=None, seconds=60.0))
        assert config.seed == 3 and config.optimiser.schedule == "constant"
        assert config.train.max_seconds == (None if found.arms[arm].budget is None else 60.0)
    assert f"<!-- begin {name}: written by make prove -->" in prove.DOCUMENT.read_text()
