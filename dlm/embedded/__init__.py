"""The tiny models that come with the package, in the layout of the releases. See docs/embedded_dlm.md."""

from __future__ import annotations

from pathlib import Path

from mmrl.errors import UserError, nearest

PREFIX = "embedded:"


def resolve(path: str) -> str:
    """`embedded:NAME` -> the folder inside the package; anything else stays. UserError for a name that is not there."""
    if not path.startswith(PREFIX):
        return path
    here = Path(__file__).parent
    names = sorted(folder.parent.name for folder in here.glob("*/config.json"))
    name = path.removeprefix(PREFIX)
    if name not in names:
        raise UserError(f"model.path: unknown embedded model {path!r}{nearest(name, names)}")
    return str(here / name)
