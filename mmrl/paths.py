"""Where the shipped files are, in a checkout and in an installed wheel alike. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from mmrl.errors import UserError, nearest


def configs_dir() -> Path:
    """The folder of shipped configurations: `mmrl/configs` in a wheel, `configs` beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "recipes").is_dir():
            return folder
    raise UserError(f"configs: no folder of shipped configurations beside {package}; install the package again")


def shipped_configs() -> list[str]:
    """Names of the shipped run configurations, e.g. `quickstart/vlm` (recipes are not run configurations)."""
    root = configs_dir()
    found = (p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))
    return sorted(name for name in found if name.split("/")[0] not in ("recipes", "models", "accelerate"))


def find_config(name: str | Path) -> Path:
    """A configuration by file path, or by the name of a shipped one with or without `configs/` and `.yaml`.

    Raises UserError when there is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    short = str(name).removeprefix("configs/").removesuffix(".yaml")
    if short in shipped_configs():
        return configs_dir() / f"{short}.yaml"
    if path.is_dir() and (path / "config.yaml").is_file():
        return (path / "config.yaml").resolve()
    raise UserError(f"{name}: no such configuration file{nearest(short, shipped_configs())}")
