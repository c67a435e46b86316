"""Checkpoints: written to a temporary folder, hashed, renamed; the newest whole one is found again.

checkpoints/step-000050/
    model/                the model in its ecosystem's format (what eval, generate and export read)
    trainable.safetensors trainable tensors in their exact type, optimiser and averages beside them
    state.json            step, selector, counters, position in metrics.jsonl
    manifest.json         format version and the SHA-256 of every file; written last

Names that begin with a dot are never read: `.writing-` a save (or a removal) that did not end, `.damaged-` set aside.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrl import json_io
from mmrl.errors import UserError
from mmrl.training.disk import WriteError, resume_command, writing
from mmrl.training.metrics import clean

FORMAT = 1
MANIFEST = "manifest.json"
_UNFINISHED = ".writing-"
_REPLACED = _UNFINISHED + "old-"  # the earlier copy of a step while the new one takes its place
_LEAVING = _UNFINISHED + "gone-"  # on its way out: never half of a folder under a name that counts
_NEEDED = ("state.json", "trainable.safetensors")
_DAMAGED = ".damaged-"


@dataclass
class Saved:
    """Contents of a checkpoint."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def _step_of(folder: Path) -> int:
    """-1 for a folder that is no step's."""
    found = re.fullmatch(r"(?:\..+-)?step-(\d+)", folder.name)
    return int(found[1]) if found else -1


def read_state(folder: Path) -> dict[str, Any]:
    """state.json alone, held against its hash (the weights are not read). Raises UserError."""
    remedy = "use another step folder of the run"
    hashes = json_io.read_object(folder / MANIFEST, remedy=remedy).get("sha256") or {}
    path = folder / "state.json"
    if not path.is_file() or hashes.get(path.name) != _digest(path):
        raise UserError(f"{folder}: damaged checkpoint ({path.name} does not match its hash); {remedy}")
    return json_io.read_object(path, remedy=remedy)


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(
    run: Path, step: int, *, tensors: dict[str, Tensor], state: dict[str, Any], save_model: Callable[[Path], None]
) -> Path:
    """Atomic: a crash or a full disk leaves the old checkpoints and at most a folder that is never read.

    Raises WriteError when the disk does not take it; the room of what was written is given back.
    """
    final = step_folder(run, step)
    work = final.with_name(_UNFINISHED + final.name)
    try:
        with writing(final):
            _fill(work, step, tensors=tensors, state=state, save_model=save_model)
            _put(work, final)
    except WriteError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return final


def _fill(
    work: Path, step: int, *, tensors: dict[str, Tensor], state: dict[str, Any], save_model: Callable[[Path], None]
) -> None:
    """All files, on the disk itself when this returns."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    save_model(work / "model")
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, work / "trainable.safetensors")
    (work / "state.json").write_text(json.dumps(clean(state), indent=1, allow_nan=False))
    hashes = {str(p.relative_to(work)): _digest(p) for p in _files(work)}
    (work / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "sha256": hashes}, indent=1))
    folders_inside = [p for p in work.rglob("*") if p.is_dir()]
    for path in (*_files(work), work / MANIFEST, *folders_inside, work):
        _sync(path)


def _put(work: Path, final: Path) -> None:
    """Give the finished folder its name."""
    if final.exists():  # the same step saved again after a resume
        old = final.with_name(_REPLACED + final.name)
        if old.exists():
            shutil.rmtree(old)
        final.rename(old)
        work.rename(final)
        shutil.rmtree(old)
    else:
        work.rename(final)
    _sync(final.parent)


@contextmanager
def explained(run: Path) -> Iterator[None]:
    """A WriteError inside says what is left of the run, and how to go on."""
    try:
        yield
    except WriteError as error:
        found = folders(run)
        left = f"the earlier checkpoint {found[-1].name} is whole" if found else "no checkpoint was saved before"
        raise UserError(
            f"{error}; {left}: make room (or make the folder writable), then go on with: {resume_command(run)}"
        ) from error


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder; None when it is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        hashes = dict(manifest["sha256"])
    except FileNotFoundError:
        return "no manifest"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"unreadable manifest ({error})"
    if manifest.get("format") != FORMAT:
        return f"format {manifest.get('format')}, this version reads {FORMAT}"
    if _step_of(folder) not in (-1, manifest.get("step")):  # -1: a copy under a name of the user's own
        return f"the manifest is of step {manifest.get('step')}"
    for name in _NEEDED:
        if name not in hashes:
            return f"the manifest does not name {name}"
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _digest(folder / name) != expected:
            return f"{name} does not match its hash"
    return None


def folders(run: Path) -> list[Path]:
    """Finished checkpoint folders, oldest first."""
    found = (p for p in (run / "checkpoints").glob("step-*") if _step_of(p) >= 0)
    return sorted(found, key=lambda p: (_step_of(p), p.name))


def newest_whole(run: Path, *, tell: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that matches its hashes; damaged ones are named and passed over. A step whose second save
    was killed while the two copies changed places gets its first copy back."""
    for old in sorted((run / "checkpoints").glob(_REPLACED + "step-*")):
        final = old.with_name(old.name.removeprefix(_REPLACED))
        if not final.exists():
            old.rename(final)
            tell(f"checkpoint {final.name}: the save that was to replace it was cut off; its earlier copy is used")
    for folder in reversed(folders(run)):
        problem = fault(folder)
        if problem is None:
            return folder
        tell(f"checkpoint {folder.name} is damaged ({problem}); trying the one before")
    return None


def read(folder: Path) -> Saved:
    problem = fault(folder)
    if problem is not None:
        raise UserError(f"{folder}: damaged checkpoint ({problem}); use another step folder of the run")
    tensors = load_file(folder / "trainable.safetensors")
    return Saved(folder, tensors, json.loads((folder / "state.json").read_text()))


def set_aside_newer(run: Path, step: int, *, tell: Callable[[str], None]) -> None:
    """Rename the folders of later steps than the one that resumes, all of them damaged: they count no more."""
    for folder in folders(run):
        if _step_of(folder) > step:
            aside = folder.with_name(_DAMAGED + folder.name)
            if aside.exists():
                shutil.rmtree(aside)
            folder.rename(aside)
            tell(f"checkpoint {folder.name} is set aside as {aside.name}")


def prune(run: Path, *, keep_last: int, best: int | None, just_written: int) -> None:
    """Keep the checkpoint just written, the last n up to it (itself among them) and the best by metric. Folders of
    later steps are left alone. Clears leftovers of interrupted saves, and set-aside folders of steps up to this one.
    """
    earlier = [p for p in folders(run) if _step_of(p) <= just_written]
    kept = {p.name for p in earlier[-keep_last:]} | {step_folder(run, just_written).name}
    if best is not None:
        kept.add(step_folder(run, best).name)
    with writing(run / "checkpoints"):
        for folder in earlier:
            if folder.name not in kept:
                folder.rename(folder.with_name(_LEAVING + folder.name))
        for leftover in (run / "checkpoints").glob(_UNFINISHED + "*"):
            shutil.rmtree(leftover)
        for damaged in (run / "checkpoints").glob(_DAMAGED + "*"):
            if _step_of(damaged) <= just_written:
                shutil.rmtree(damaged)
