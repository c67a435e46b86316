"""The catalogue of recipes: names, files, contents. Loads no torch; what a stage does is known to `mmrl.core`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl import yaml_io
from mmrl.errors import UserError, nearest
from mmrl.paths import configs_dir

#: Short names that two published methods share: an error that names both, never a guess.
AMBIGUOUS = {
    "gdpo": {
        "gdpo-diffusion": "sequence-level policy optimisation of diffusion language models",
        "gdpo-decoupled": "each reward normalised on its own",
    },
    "spo": {
        "spo-single-stream": "a value tracker instead of a group",
        "spo-segment": "Monte Carlo values of segments",
    },
    "flow-grpo": {
        "flow-grpo": "GRPO for flow-matching image models",
        "agentflow": "one outcome broadcast to all turns of an agent",
    },
}


def available() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(p.stem for p in (configs_dir() / "recipes").glob("*.yaml"))


def locate(name: str, folder: Path | None = None) -> Path:
    """The file of a recipe: a shipped name, or a path that ends in .yaml (relative to `folder`).

    Raises UserError for an unknown or ambiguous name.
    """
    if name.endswith((".yaml", ".yml")):
        path = (folder or Path.cwd()) / Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"recipe: no such file {path}")
        return path.resolve()
    names = available()
    slug = name.strip().lower().replace("_", "-")
    if name in names:
        return configs_dir() / "recipes" / f"{name}.yaml"
    if slug in AMBIGUOUS and slug not in names:
        both = ", ".join(
            f"{slug} ({what}{'' if slug in names else '; not in this version'})"
            for slug, what in AMBIGUOUS[slug].items()
        )
        raise UserError(f"recipe: {name!r} is the name of two methods, say which one: {both}")
    raise UserError(f"recipe: unknown recipe {name!r}{nearest(slug, names)}")


def read(name: str, folder: Path | None = None) -> dict[str, Any]:
    """The contents of a recipe, by name or path (see `locate`)."""
    return yaml_io.read(locate(name, folder))
