"""From a YAML file and `key=value` overrides to a complete, typed `Config`. Loads no torch.

Every mistake becomes one UserError line that names the file, the dotted key and the nearest valid key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mmrl import config_errors, families, recipes, yaml_io
from mmrl.config import Config, Selection
from mmrl.core import recipe as core_recipe
from mmrl.errors import UserError
from mmrl.paths import find_config
from mmrl.plugins import load_plugins

#: The sections a family types itself, by the name of the model in its config module.
FAMILY_SECTIONS = {"model": "Model", "sampling": "Sampling", "inputs": "Inputs"}
_EMBEDDED = re.compile(r"[a-z][a-z0-9_]*:[^/\\]+")
_FILES = (".jsonl", ".json", ".parquet", ".txt")
#: Rollouts of one step live in memory together.
MAX_ROWS = 1_000_000
#: Keys below which everything belongs to one dictionary with dotted keys.
FLAT = ("recipe_options",)
PATH_KEYS = ("data.train", "data.eval", "model.path", "model.base")


def resolve(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run.

    path       a YAML file, a run folder, or the name of a shipped configuration.
    overrides  `dotted.key=value`, the value read as YAML; paths in them are relative to the working folder, paths in
               the file to the file's folder.
    Raises UserError.
    """
    file = find_config(path)
    raw = yaml_io.read(file)
    if Path(path).is_dir() and file.parent == Path(path).resolve():
        raw["out"] = str(path)  # a run folder goes on where it is, wherever it was called from or moved to
    for override in overrides:
        apply_override(raw, override)
    return build(raw, folder=file.parent, where=str(path))


def build(raw: dict[str, Any], *, folder: Path, where: str = "config") -> Config:
    """A `Config` from plain values. `folder` anchors relative paths, `where` names the origin in errors."""
    raw = dict(raw)
    _refuse_non_finite(raw, where)
    name = raw.get("family")
    if name is None:
        raise UserError(f"{where}: family: missing; one of {', '.join(sorted(families.FAMILIES))}")
    if str(name) not in families.FAMILIES and isinstance(raw.get("plugins"), list):
        load_plugins([str(module) for module in raw["plugins"]])  # one of them may register the family
    try:
        module = families.config_module(str(name))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    _take_sections_of_the_recipe(raw, {"sampling": module.Sampling, "selection": Selection}, folder, where)
    shape: dict[str, type[BaseModel]] = {key: getattr(module, cls) for key, cls in FAMILY_SECTIONS.items()}
    if isinstance(raw.get("recipe_options"), dict):
        raw["recipe_options"] = flat_options(raw["recipe_options"])
    problems: list[str] = []
    for key, cls in shape.items():
        try:
            raw[key] = cls.model_validate(raw.get(key) or {})
        except ValidationError as error:
            problems += config_errors.lines(error, cls, prefix=key)
            raw[key] = None
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems += config_errors.lines(error, Config, elsewhere=shape)
    if problems:
        raise UserError(f"{where}: {config_errors.join(problems)}")
    _anchor_paths(config, folder, where)
    check(config, where=where)
    return config


def _take_sections_of_the_recipe(
    raw: dict[str, Any], known: dict[str, type[BaseModel]], folder: Path, where: str
) -> None:
    """What the recipe says of sampling and selection (sections of its file) stands below the run's. In place."""
    recipe = raw.get("recipe")
    if not isinstance(recipe, str):
        return  # refused with a better message further on, as is all that is passed over here
    try:
        found = recipes.read(recipe, folder)
    except UserError:
        return
    for section, model in known.items():
        own, below = raw.get(section) or {}, found.get(section) or {}
        if not below or not isinstance(own, dict) or not isinstance(below, dict):
            continue
        for key in below:
            if key not in model.model_fields:
                raise UserError(
                    f"{where}: recipe: {recipe} sets {section}.{key}, which family {raw['family']!r} does not have; "
                    "choose a recipe of this family"
                )
        raw[section] = _below({section: below}, {section: own})[section]


def _below(defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `defaults`, mapping by mapping; one that names another choice (`name`) replaces the default whole."""
    merged = {**defaults, **own}
    for key, value in own.items():
        below = defaults.get(key)
        if (
            isinstance(value, dict)
            and isinstance(below, dict)
            and value.get("name", below.get("name")) == below.get("name")
        ):
            merged[key] = _below(below, value)
    return merged


def recipe_of(config: Config, unit: str | None = None) -> core_recipe.Recipe:
    """The run's recipe with its own defaults for `unit`, if given, and the run's overrides applied.

    Raises UserError for an unknown recipe or option path.
    """
    return core_recipe.parse(config.recipe, recipes.read(config.recipe), unit=unit, options=config.recipe_options)


def check(config: Config, *, where: str = "config") -> None:
    """What no single key shows: the recipe exists, the group is large enough, a batch can be cut as asked."""
    try:
        recipe = recipe_of(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if recipe.group == "relative" and config.train.group < 2:
        raise UserError(
            f"{where}: train.group: {config.train.group} sample per prompt cannot be compared with anything, "
            f"and recipe {config.recipe!r} is group-relative; set train.group to 2 or more"
        )
    rows = config.train.prompts * config.train.group
    if rows > MAX_ROWS:
        raise UserError(
            f"{where}: train.prompts x train.group: {rows} rollouts in one step are more than {MAX_ROWS}, the most "
            "that are held at once; lower one of them"
        )
    if config.distributed.mode == "fsdp2" and config.optimiser.kind != "adamw":
        raise UserError(
            f"{where}: optimiser.kind: {config.optimiser.kind} cannot be used with distributed.mode: fsdp2; use adamw"
        )
    _check_success(config, where)
    cuts = config.train.minibatches or recipe.minibatches
    if cuts > config.train.prompts:
        raise UserError(
            f"{where}: train.minibatches: {cuts} minibatches of whole groups need at least as many prompts, "
            f"train.prompts is {config.train.prompts}"
        )


def _check_success(config: Config, where: str) -> None:
    """At most one reward component decides what is right, and judges, which train nothing, never do."""
    marked = [spec.name for spec in config.rewards.components if spec.success is not None]
    if len(marked) > 1:
        raise UserError(
            f"{where}: rewards.components: success is set for {', '.join(marked)}; one component says what is right"
        )
    for at, spec in enumerate(config.eval.judges):
        if spec.success is not None:
            raise UserError(f"{where}: eval.judges.{at}.success: nothing is trained on a judge; remove it")


def flat_options(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{bounds: {low: 0.1}}` -> `{"bounds.low": 0.1}`. A mapping with `name` is a whole stage: one value."""
    out: dict[str, Any] = {}
    for key, value in options.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and "name" not in value:
            out.update(flat_options(value, f"{path}."))
        else:
            out[path] = value
    return out


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in place. List items are reached by their number."""
    key, sign, text = override.partition("=")
    key = key.strip()
    if not sign or not key or not all(key.split(".")):
        raise UserError(f"override {override!r}: write it as dotted.key=value, e.g. train.group=8")
    value = yaml_io.parse(text, f"override {key}")
    if key in PATH_KEYS or (key == "recipe" and str(value).endswith((".yaml", ".yml"))):
        value = _from_working_folder(value)
    parts = key.split(".")
    if parts[0] in FLAT and len(parts) > 1:
        parts = [parts[0], ".".join(parts[1:])]
    node: Any = raw
    for depth, part in enumerate(parts[:-1]):
        node = _child(node, part, ".".join(parts[: depth + 1]), override)
    _set(node, parts[-1], value, override)


def _child(node: Any, part: str, path: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if node.get(part) is None:
        node[part] = {}
    child = node[part]
    if not isinstance(child, dict | list):
        raise UserError(f"override {override!r}: {path} is a plain value ({child!r}), it has no keys below it")
    return child


def _set(node: Any, part: str, value: Any, override: str) -> None:
    if isinstance(node, list):
        node[_index(node, part, override)] = value
    else:
        node[part] = value


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"override {override!r}: {part!r} is no item of a list of {len(node)}; count from 0")
    return int(part)


def _from_working_folder(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_working_folder(v) for v in value]
    if isinstance(value, str) and Path(value).expanduser().exists():
        return str(Path(value).expanduser().resolve())
    return value


def _refuse_non_finite(raw: dict[str, Any], where: str) -> None:
    for key, value in _leaves(raw, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: {key}: {value} is not a finite number")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}.{i}")
    else:
        yield path, value


def _anchor_paths(config: Config, folder: Path, where: str) -> None:
    config.data.train = _data_files(config.data.train, folder, f"{where}: data.train")
    if config.data.eval is not None:
        config.data.eval = _data_files(config.data.eval, folder, f"{where}: data.eval")
    if config.recipe.endswith((".yaml", ".yml")):
        config.recipe = str(recipes.locate(config.recipe, folder))
    model = Path(config.model.path).expanduser()
    if (folder / model).is_dir():
        config.model.path = str((folder / model).resolve())
    elif model.is_absolute() or config.model.path.startswith((".", "~")):
        raise UserError(f"{where}: model.path: no such folder {config.model.path}")
    base = getattr(config.model, "base", None)
    if base is not None and (folder / Path(base).expanduser()).is_dir():
        config.model.base = str((folder / Path(base).expanduser()).resolve())


def _data_files(entry: str | list[str], folder: Path, where: str) -> str | list[str]:
    if isinstance(entry, list):
        if not entry:
            raise UserError(f"{where}: an empty list; name at least one file")
        return [str(_data_files(item, folder, where)) for item in entry]
    path = folder / Path(entry).expanduser()
    if path.exists():  # a folder may be a data set saved by `datasets`
        return str(path.resolve())
    if is_embedded(entry):
        return entry
    raise UserError(f"{where}: no such file {entry} (looked in {folder})")


def is_embedded(name: str) -> bool:
    """`digits:train` and the like name an embedded data set. A path on disk, or a name that ends as a file of records
    does, never is one."""
    return bool(_EMBEDDED.fullmatch(name)) and not name.endswith(_FILES) and not Path(name).exists()


def plain(config: Config) -> dict[str, Any]:
    """The configuration as plain YAML values."""
    return config.model_dump(mode="json")


def dump(config: Config) -> str:
    """The configuration as YAML text that `resolve` reads back to an equal configuration."""
    return yaml_io.dump(plain(config))
