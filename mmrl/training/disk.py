"""Writing a run's files where the disk may be full, read-only or gone: one line, and what was there stays whole."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrl.errors import UserError


class WriteError(UserError):
    """A file of the run could not be written."""


@contextmanager
def writing(what: object) -> Iterator[None]:
    """Failures of the disk inside become a WriteError that names `what`; mistakes in the code stay what they are."""
    try:
        yield
    except Exception as error:
        why = reason(error)
        if why is None:
            raise
        raise WriteError(f"{what}: cannot be written ({why})") from error


def reason(error: Exception) -> str | None:
    """`No space left on device` and the like; None when the disk is not to blame. Libraries in Rust (safetensors,
    tokenizers) raise their own classes, which carry the number of the system's error in their text."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    found = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(found[1])) if found else None


def replace(path: Path, text: str) -> None:
    """Write a text file so that a crash or a full disk leaves either the old text or the new one. Raises WriteError."""
    with writing(path):
        temporary = path.with_name(path.name + ".tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def resume_command(run: Path) -> str:
    """What to type, in the folder where the run was started, to go on with it."""
    return f"mmrl train {shlex.quote(str(run))} --resume"
