"""Models inside the packages, by name. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from mmrl import families
from mmrl.errors import UserError, nearest

#: A family that stands on this one adds its own, in its config module.
EMBEDDED = {"embedded:vlm": Path(__file__).parent / "embedded"}


def resolve(path: str) -> str:
    """`embedded:vlm` -> the folder inside the package; anything else stays. Raises UserError for an unknown name."""
    if not path.startswith("embedded:"):
        return path
    family = path.removeprefix("embedded:")
    if family in families.FAMILIES:
        families.config_module(family)  # a program that loads a model need not have named its family before
    if path not in EMBEDDED:
        raise UserError(f"model.path: unknown embedded model {path!r}{nearest(path, EMBEDDED)}")
    return str(EMBEDDED[path])
