"""A run that is over: its model, the configuration it is used with, its evaluation. Nothing here trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmrl import config_io, families, yaml_io
from mmrl.config import Config
from mmrl.errors import UserError
from mmrl.paths import find_config
from mmrl.training import checkpoint
from mmrl.training.evaluating import measured
from mmrl.training.setup import load_records, prepare_machine

Tell = Callable[[str], None]


def model_folder(path: Path, step: int | None = None) -> Path:
    """The model inside a run folder (of `step`, else of its best one), a step folder or an exported folder."""
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; give a run folder, a step folder or an exported folder")
    if (path / "checkpoints").is_dir():
        path = _step(path, step)
    elif step is not None:
        raise UserError(f"--step {step}: {path} is no run folder; give the folder that holds checkpoints/")
    if (path / checkpoint.MANIFEST).exists() or (path / "model").is_dir():
        problem = checkpoint.fault(path)
        if problem:
            raise UserError(f"{path}: damaged checkpoint ({problem}); use another step folder of the run")
        return path / "model"
    return path


def _step(run: Path, step: int | None) -> Path:
    """The folder of one step: the one asked for, else the best, else the last."""
    steps = checkpoint.folders(run)
    if not steps:
        raise UserError(f"{run}: the run has no checkpoint yet")
    if step is None:
        best = checkpoint.read_state(steps[-1])["trainer"]["counters"]["best_step"]
        folder = checkpoint.step_folder(run, best) if best is not None else steps[-1]
        return folder if folder.is_dir() else steps[-1]
    folder = checkpoint.step_folder(run, step)
    if not folder.is_dir():
        kept = ", ".join(str(int(p.name.removeprefix("step-"))) for p in steps)
        raise UserError(f"--step {step}: {run} has no checkpoint of that step; it keeps {kept}")
    return folder


def run_folder(path: Path) -> Path | None:
    """The run that a run folder, a step folder or a step's model folder belongs to; None for anything else."""
    whole = path.resolve()
    folder = whole if whole.name != "model" else whole.parent
    run = folder.parents[1] if folder.parent.name == "checkpoints" else whole
    return run if (run / "config.yaml").is_file() else None


def run_config(
    path: Path,
    config: str | Path | None,
    *,
    data: str | None = None,
    model: Path | None = None,
    base: str | None = None,
) -> Config:
    """The configuration a checkpoint is used with: the one given, else that of its own run.

    data    the one entry of `data` that is read, train or eval. Files of the others need not be there any more.
    model   the folder to load in place of the configuration's model.path, which then need not be there any more.
    base    the model below an adapter, in place of the one that the adapter names.
    """
    run = run_folder(path)
    if config is None and run is None:
        raise UserError(f"{path}: its run's config.yaml is not there; name one with --config")
    return _resolve_without(config if config is not None else f"{run}/config.yaml", data, model, base)


def _resolve_without(file: str | Path, data: str | None, model: Path | None, base: str | None) -> Config:
    """`config_io.resolve` with another model, but entries of `data` other than the named one may name files that are
    gone."""
    found = find_config(file)
    raw = yaml_io.read(found)
    if model is not None and isinstance(raw.get("model"), dict | None):
        raw["model"] = (
            (raw.get("model") or {})
            | {"path": str(model.resolve())}
            | ({"base": _if_there(Path.cwd(), base)} if base else {})
        )
    entries = raw.get("data")
    unread: dict[str, Any] = {}  # text, or a list of texts
    if isinstance(entries, dict):
        for key in {"train", "eval"} - {data}:
            value = entries.get(key)
            names = value if isinstance(value, list) else [value]
            if names and all(isinstance(name, str) for name in names):  # anything else is refused below
                unread[key] = value
        raw["data"] = entries | dict.fromkeys(unread, "unread:records")  # the form of an embedded set: no file
    config = config_io.build(raw, folder=found.parent, where=str(file))
    for key, value in unread.items():
        at = [_if_there(found.parent, name) for name in ([value] if isinstance(value, str) else value)]
        setattr(config.data, key, at[0] if isinstance(value, str) else at)
    return config


def _if_there(folder: Path, name: str) -> str:
    path = folder / Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def evaluate_run(
    path: Path, config: Path | None = None, *, base: str | None = None, tell: Tell | None = None
) -> dict[str, float]:
    """Greedy metrics of a checkpoint on the evaluation records of a configuration. `tell` gets what looks wrong."""
    resolved = run_config(path, config, data="eval", model=model_folder(path), base=base)
    if resolved.data.eval is None:
        raise UserError("data.eval: the configuration names no evaluation records; add some, or give another --config")
    prepare_machine(resolved)
    records = load_records(resolved, "eval")
    entry = families.entry(resolved.family)
    return measured(entry, entry.load_policy(resolved), records, resolved, tell)
