"""What may differ between a run and its continuation. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl.errors import UserError

#: Changed, the continuation would be another run: its saved state would mean something else.
FIXED = (
    "family",
    "recipe",
    "recipe_options",
    "seed",
    "model.adapter",
    "model.freeze",
    "selection",
    "ema",
    "optimiser.kind",
    "train.control",
)
#: How a run is watched or carried out; nobody needs to be told.
FREE = (
    "out",
    "device",
    "threads",
    "log",
    "checkpoint",
    "train.steps",
    "train.max_seconds",
    "eval.every",
    "eval.samples",
    "rewards.workers",
)


def changes(saved: dict[str, Any], now: dict[str, Any], *, folder: Path) -> list[str]:
    """A line per key that changed and that a person should know of. Keys that one side lacks (another version wrote
    it) are passed over. Raises UserError for a change of a fixed key."""
    notes = []
    for key, (old, new) in different(saved, now).items():
        if _below(key, FIXED) and not (key == "recipe" and _same_file(old, new)):
            raise UserError(
                f"{key}: {folder.name} was made with {old!r}, the configuration says {new!r}; "
                "resume with the old value, or start a new run with out=..."
            )
        if not _below(key, FREE):
            notes.append(f"changed since {folder.name}: {key} is {new!r}, was {old!r}")
    return notes


def different(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) of every value that differs. Below a free-form section the whole section counts."""
    if isinstance(old, dict) and isinstance(new, dict) and path not in ("recipe_options", "selection.options"):
        out: dict[str, tuple[Any, Any]] = {}
        for key in old.keys() & new.keys():
            out |= different(old[key], new[key], f"{path}.{key}" if path else str(key))
        return dict(sorted(out.items()))
    return {path: (old, new)} if old != new else {}


def _below(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _same_file(old: Any, new: Any) -> bool:
    """A recipe file of the user's own that moved with its run keeps its name."""
    return str(old).endswith((".yaml", ".yml")) and Path(str(old)).name == Path(str(new)).name
