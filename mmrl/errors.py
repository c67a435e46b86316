"""The one exception for mistakes a user can mend; the command line prints it as one line and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and what to do, in one line."""

    quiet = False  # another process of the run tells it


class RecordError(UserError):
    """One record cannot be used (its picture is gone, its prompt too long). `record_id` says which."""

    def __init__(self, record_id: str, problem: str) -> None:
        super().__init__(f"record {record_id!r}: {problem}")
        self.record_id, self.problem = record_id, problem


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest valid name, else the list of valid names."""
    options = sorted(str(v) for v in valid)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not options:
        return ""
    return "; valid: " + ", ".join(options)
