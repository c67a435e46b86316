"""What the names of embedded sets share: `SOURCE:PART?key=value&...`. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Collection

from mmrl.errors import UserError, nearest


def read_options(name: str, query: str | None, keys: Collection[str]) -> dict[str, str]:
    """What stands behind the question mark of `name`, by key; without one (None) nothing. Raises UserError for a key
    that is not among `keys`, one without a value, and one that stands twice."""
    options: dict[str, str] = {}
    for item in [] if query is None else query.split("&"):
        key, equals, value = item.partition("=")
        if key not in keys:
            raise UserError(f"data: {name!r}: unknown option {key!r}{nearest(key, keys)}")
        if not equals or key in options:
            raise UserError(f"data: {name!r}: write each option once, as {key}=value")
        options[key] = value
    return options


def whole_number(name: str, key: str, text: str, *, least: int) -> int:
    """The value of an option, at most nine digits. Raises UserError."""
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
        raise UserError(f"data: {name!r}: {key} must be a whole number of at least {least}, got {text!r}")
    return int(text)
