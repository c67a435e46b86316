"""Ctrl-C and SIGTERM: saved, told how to go on, exit code 130 or 143, and the run goes on as if nothing had been."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_family
import toy_runs
from fault_compare import differences
from toy import ToyPolicy

from mmrl.cli.main import run
from mmrl.training import checkpoint, interrupt
from mmrl.training.run import Session

pytestmark = pytest.mark.usefixtures("toy")


def sends(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *signals: int) -> None:
    """Call `call` (from 1) of owner.name comes with signals for this process."""
    original: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def replaced(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            for one in signals:
                os.kill(os.getpid(), one)
        return original(*arguments, **options)

    patch.setattr(owner, name, replaced)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    assert toy_runs.train(tmp_path, tmp_path / "whole", checkpoint={"every": 1}) == 0
    return tmp_path / "whole"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [
        (ToyPolicy, "rollout", 5, 3),  # the evaluation and the samples before come first
        (ToyPolicy, "open", 20, None),  # in an update
        (toy_family, "evaluate", 1, 0),
        (toy_family, "evaluate", 2, 3),
        (checkpoint, "_fill", 3, 3),
    ],
)
def test_saved_and_resumed(
    owner: Any,
    name: str,
    call: int,
    step: int | None,
    signum: int,
    code: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        sends(patch, owner, name, call, signum)
        assert toy_runs.train(tmp_path, "some run", checkpoint={"every": 1}) == code
    told = capfd.readouterr().err
    newest = checkpoint.folders(Path("some run"))[-1]
    assert step is None or newest.name == f"step-{step:06d}"
    last = told.splitlines()[-1]
    assert last.startswith(f"interrupted: stopped by signal {int(signum)} after step {int(newest.name[5:])}")
    assert "the same signal again leaves at once" in told and "Traceback" not in told
    command = shlex.split(last.split("go on with: ")[1])
    assert command == ["mmrl", "train", "some run", "--resume"]
    assert run(command[1:]) == 0
    assert differences(whole, tmp_path / "some run") == []


def test_while_loading_it_leaves_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sends(monkeypatch, toy_family, "load_policy", 1, signal.SIGTERM)
    assert toy_runs.train(tmp_path, tmp_path / "run") == 143
    assert capfd.readouterr().err.strip() == "interrupted before training began, nothing is lost"
    assert not (tmp_path / "run").exists()


def test_the_second_one_leaves_at_once(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interrupt, "SAME_S", 0.0)
    with monkeypatch.context() as patch:
        sends(patch, ToyPolicy, "open", 20, signal.SIGINT, signal.SIGINT)
        assert toy_runs.train(tmp_path, tmp_path / "run", checkpoint={"every": 1}) == 130
    told = capfd.readouterr().err
    assert f"without saving; go on from the newest checkpoint with: mmrl train {tmp_path / 'run'} --resume" in told
    assert toy_runs.resume(tmp_path / "run") == 0
    assert differences(whole, tmp_path / "run") == []


@pytest.mark.parametrize(("signals", "saved"), [(2, 3), (3, 2)])
def test_a_save_is_finished_unless_the_third_one_comes(
    signals: int, saved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "SAME_S", 0.0)
    with monkeypatch.context() as patch:
        sends(patch, checkpoint, "_fill", 3, *[signal.SIGINT] * signals)
        assert toy_runs.train(tmp_path, tmp_path / "run", checkpoint={"every": 1}) == 130
    newest = checkpoint.newest_whole(tmp_path / "run", tell=pytest.fail)
    assert newest is not None and newest.name == f"step-{saved:06d}"
    assert toy_runs.resume(tmp_path / "run") == 0


def test_one_key_press_that_arrives_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher passes on what the terminal sent to all."""
    sends(monkeypatch, ToyPolicy, "open", 20, signal.SIGINT, signal.SIGTERM, signal.SIGINT)
    assert toy_runs.train(tmp_path, tmp_path / "run") == 130
    assert checkpoint.folders(tmp_path / "run")


def test_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert toy_runs.train(tmp_path, tmp_path / "run", train={"steps": 1}) == 0
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_after_the_last_step_it_still_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    with monkeypatch.context() as patch:
        sends(patch, Session, "_save", 6, signal.SIGINT)
        assert toy_runs.train(tmp_path, tmp_path / "run", checkpoint={"every": 1}) == 130
    assert not (tmp_path / "run" / "summary.json").exists()
    assert toy_runs.resume(tmp_path / "run") == 0
    assert differences(whole, tmp_path / "run") == []


# ---- workers ---------------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys, time
sys.path.insert(0, {rewards!r})
import worker_rewards
from mmrl.config import Rewards, RewardSpec
from mmrl.data.records import Record
from mmrl.rewards.score import Scorer

scorer = Scorer(Rewards(components=[RewardSpec(name="w_length"), RewardSpec(name={name!r})], workers=2))
records = [Record(str(i), "t", "p") for i in range(4)]
info = [{{"sample": i}} for i in range(4)]
scorer.score(["a"] * 4, records, info)
print(*(w.process.pid for w in scorer._pool._workers), flush=True)
sys.stdin.readline()
print(scorer.score([{text!r}] * 4, records, info).reward_nk.sum().item(), flush=True)
"""


def scoring(name: str, text: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that scores with two workers, waits for a line, and scores again; the pids of the workers."""
    rewards = str(Path(__file__).parent.parent / "rewards")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(rewards=rewards, name=name, text=text)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def alive(pid: int) -> bool:
    """A zombie is none."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids: list[int], within_s: float = 60.0) -> bool:
    end = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_outlive_the_signals_meant_for_the_run() -> None:
    """Ctrl-C reaches the group of the run, and a job system may send SIGTERM to every process: both leave workers."""
    process, pids = scoring("w_length", "abc")
    assert len(pids) == 2 and all(os.getpgid(pid) != os.getpgid(process.pid) for pid in pids)
    for pid in pids:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    answer, _ = process.communicate("\n")
    assert answer == "24.0\n" and process.returncode == 0
    assert gone(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a hang inside one call outlives the run")
@pytest.mark.parametrize("name", ["w_hang", "w_spin"])
def test_no_worker_stays_behind_a_killed_run(name: str) -> None:
    """w_spin hangs inside one call that lets no other thread of the worker run."""
    process, pids = scoring(name, "hang")
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    time.sleep(0.5)  # the rows are on their way
    assert all(map(alive, pids))
    process.kill()
    process.wait()
    assert gone(pids)
