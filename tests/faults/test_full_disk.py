"""A full disk or a read-only folder: one line, exit code 2, the earlier checkpoint whole, and the run goes on after."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_runs
from fault_compare import differences
from safetensors import SafetensorError
from toy import ToyPolicy

from mmrl.training import checkpoint, disk, gallery, run
from mmrl.training.metrics import MetricsLog, TensorBoard

pytestmark = pytest.mark.usefixtures("toy")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    assert toy_runs.train(tmp_path, tmp_path / "whole") == 0
    return tmp_path / "whole"


def fails(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, error: Exception = FULL) -> None:
    original: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def replaced(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) >= call:
            raise error
        return original(*arguments, **options)

    patch.setattr(owner, name, replaced)


RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
TOKENIZER = Exception("No space left on device (os error 28)")
#: what fails -> owner, name, from which call on, error, what the message names
POINTS: dict[str, tuple[Any, str, int, Exception, str]] = {
    "the model": (ToyPolicy, "save", 3, FULL, "step-000004: "),
    "its tokenizer": (ToyPolicy, "save", 3, TOKENIZER, "step-000004: "),
    "the tensors": (checkpoint, "save_file", 3, RUST, "step-000004: "),
    "the state": (checkpoint, "clean", 3, FULL, "step-000004: "),
    "the manifest": (checkpoint, "_files", 5, FULL, "step-000004: "),
    "syncing": (checkpoint, "_sync", 18, FULL, "step-000004: "),
    "a read-only folder": (checkpoint, "_fill", 3, OSError(errno.EROFS, os.strerror(errno.EROFS)), "step-000004: "),
    "naming": (checkpoint, "_put", 3, OSError(errno.EACCES, os.strerror(errno.EACCES), "x"), "step-000004: "),
    "the log": (MetricsLog, "sync", 3, disk.WriteError("metrics.jsonl: cannot be written (x)"), "metrics.jsonl"),
    "the samples": (run, "write_samples", 2, FULL, "samples: "),
    "rollouts among the samples": (run, "write_rollouts", 2, FULL, "samples: "),
    "the summary": (disk.os, "replace", 2, FULL, "summary.json: "),
}


@pytest.mark.parametrize("point", POINTS)
def test_every_write(
    point: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    owner, name, call, error, named = POINTS[point]
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        fails(patch, owner, name, call, error)
        assert toy_runs.train(tmp_path, out) == 2
    message = toy_runs.error_of(capsys.readouterr().err)
    assert named in message and "make room" in message and f"mmrl train {out} --resume" in message, message
    newest = checkpoint.newest_whole(out, tell=pytest.fail)
    assert (f"the earlier checkpoint {newest.name} is whole" if newest else "no checkpoint was saved before") in message
    assert not list((out / "checkpoints").glob(".writing-step*"))  # the room is given back
    assert toy_runs.resume(out) == 0
    lost = "samples: " if "samples" in point else "nothing"  # the step itself was saved, and is not made again
    assert [line for line in differences(whole, out) if not line.startswith(lost)] == []


def test_a_line_of_the_log_that_fits_by_half(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real limit of the operating system, in a process of its own (it cannot be raised again)."""
    out = tmp_path / "run"
    pid = os.fork()
    if pid == 0:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = len("".join((whole / "metrics.jsonl").read_text().splitlines(keepends=True)[:4])) - 40
        original = MetricsLog.write

        def limited(self: MetricsLog, values: dict[str, Any]) -> None:
            if values["step"] == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            original(self, values)

        MetricsLog.write = limited  # type: ignore[method-assign]
        stderr = os.open(tmp_path / "told", os.O_CREAT | os.O_WRONLY)
        os.dup2(stderr, 2)
        import sys

        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        os._exit(toy_runs.train(tmp_path, out))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    message = toy_runs.error_of((tmp_path / "told").read_text())
    assert "metrics.jsonl: cannot be written (File too large); the earlier checkpoint step-000002 is whole" in message
    assert toy_runs.resume(out) == 0
    assert differences(whole, out) == []


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Its own thread fails to write; the run says so once, without the thread's traceback."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    fails(monkeypatch, RecordWriter, "write", 4)
    assert toy_runs.train(tmp_path, tmp_path / "run", log={"tensorboard": True}) == 2
    told = capfd.readouterr().err
    assert "TensorBoard" in told and "No space left on device" in told and "Traceback" not in told
    assert "make room" in told.splitlines()[-1]


def test_tensorboard_that_fails_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TensorBoard, "close", lambda self: (_ for _ in ()).throw(FULL))
    assert toy_runs.train(tmp_path, tmp_path / "run", log={"tensorboard": True}) == 0
    assert "TensorBoard could not be closed (No space left on device)" in capfd.readouterr().err


def test_a_mistake_whose_state_cannot_be_saved_says_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmrl.errors import UserError

    fails(monkeypatch, ToyPolicy, "rollout", 6, UserError("the picture is gone"))
    fails(monkeypatch, checkpoint, "_put", 2)
    assert toy_runs.train(tmp_path, tmp_path / "run", checkpoint={"every": 2}) == 2
    told = capsys.readouterr().err
    assert "the picture is gone" in told and "No space left on device" in toy_runs.error_of(told)


def test_pictures_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    picture = Image.effect_noise((40, 40), 50).convert("RGB")

    def half(self: Image.Image, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"\x89PNG half")
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", half)
        with pytest.raises(OSError, match="No space"):
            gallery._keep(picture, "a", tmp_path)
    name = gallery._keep(picture, "a", tmp_path)
    assert Image.open(tmp_path / name).tobytes() == picture.tobytes()


def test_other_errors_are_not_taken_for_the_disk() -> None:
    for error in (ZeroDivisionError("x"), ValueError("(os error)"), SafetensorError("bad header")):
        with pytest.raises(type(error)), disk.writing("x"):
            raise error


# ---- a real disk -----------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of 400 kB; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def filled(folder: Path) -> Path:
    """Take all the room there is."""
    with pytest.raises(OSError, match="No space"), (folder / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    return folder / "ballast"


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(checkpoint, "_fill", 3), (ToyPolicy, "save", 3), (run, "write_samples", 2), (run, "replace", 2)],
)
def test_a_real_full_disk(
    owner: Any,
    name: str,
    call: int,
    whole: Path,
    mounted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is filled just before the call; a line of the log may be what fails then."""
    original: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def replaced(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            filled(mounted)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replaced)
        assert toy_runs.train(tmp_path, mounted / "run") == 2
    message = toy_runs.error_of(capsys.readouterr().err)
    assert "No space left on device" in message and "make room" in message
    assert checkpoint.newest_whole(mounted / "run", tell=pytest.fail) is not None or name == "write_samples"
    assert toy_runs.resume(mounted / "run") == 2  # still full: no worse than before
    assert "error: " in capsys.readouterr().err
    (mounted / "ballast").unlink()
    assert toy_runs.resume(mounted / "run") == 0
    assert differences(whole, mounted / "run") == []


def test_a_real_read_only_disk(
    whole: Path, mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(mounted)], check=True)

    original, calls = ToyPolicy.rollout, []

    def replaced(self: ToyPolicy, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            log[0].file.close()  # a disk with a file open for writing cannot be remounted
            remount("ro")
        return original(self, *arguments, **options)

    log: list[MetricsLog] = []
    begin = MetricsLog.__init__

    def remembered(self: MetricsLog, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        log.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(ToyPolicy, "rollout", replaced)
        patch.setattr(MetricsLog, "__init__", remembered)
        patch.setattr(MetricsLog, "write", lambda self, values: None if self.file.closed else write(self, values))
        patch.setattr(MetricsLog, "sync", lambda self: None)
        assert toy_runs.train(tmp_path, mounted / "run") == 2
    message = toy_runs.error_of(capsys.readouterr().err)
    assert "Read-only file system" in message and "the earlier checkpoint step-000002 is whole" in message
    assert toy_runs.resume(mounted / "run") == 2
    assert toy_runs.error_of(capsys.readouterr().err)
    remount("rw")
    assert toy_runs.resume(mounted / "run") == 0
    assert differences(whole, mounted / "run") == []


write = MetricsLog.write
