"""From a run to a folder that plain libraries load: written beside its place, compared, described, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl import config_io, families, yaml_io
from mmrl.config import Config
from mmrl.data.images import check_header
from mmrl.data.read import scan
from mmrl.data.records import Record
from mmrl.errors import UserError
from mmrl.report.runs import read_metrics, read_summary
from mmrl.training import checkpoint
from mmrl.training.disk import writing
from mmrl.training.exported import Exported, Wanted
from mmrl.training.model_card import Facts, card
from mmrl.training.setup import needed, picture_limits, prepare_machine
from mmrl.training.stored import model_folder, run_config, run_folder

Tell = Callable[[str], None]
_UNFINISHED = ".exporting-"


@dataclass(frozen=True)
class Options:
    """step: of a run folder, else its best one. config: instead of the run's own. base: of an adapter that moved."""

    step: int | None = None
    config: str | None = None
    base: str | None = None


def export_run(path: Path, out: Path, wanted: Wanted, options: Options, tell: Tell) -> Exported:
    """Export the model of a run folder or step folder into the new folder `out`.

    Raises UserError when it cannot be done or the result is not the model that was trained; then there is no `out`.
    """
    check_target(out)
    model = model_folder(path, options.step)
    config = run_config(path, options.config, model=model, base=options.base)
    entry = families.entry(config.family)
    if not hasattr(entry, "export"):
        raise UserError(
            f"family {config.family!r} cannot be exported; its checkpoints' model/ folders are what it saves"
        )
    prepare_machine(config)
    if model.name == "model":
        tell(f"exporting {model.parent.name} of {(run_folder(path) or path).name}")
    record = sample_record(config, tell)
    work = out.with_name(_UNFINISHED + out.name)
    try:
        with writing(out):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            done: Exported = entry.export(config, work, wanted, record)
            (work / "README.md").write_text(card(facts(path, model, config, done)), encoding="utf-8")
            work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return done


def check_target(out: Path) -> None:
    """Raises UserError unless `out` is new, or an empty folder."""
    if out.is_dir() and not out.is_symlink():
        if any(out.iterdir()):
            raise UserError(f"--out {out}: the folder is not empty; choose another, or remove it first")
    elif out.exists() or out.is_symlink():
        raise UserError(f"--out {out}: exists and is no folder; choose another name")
    if not out.name:
        raise UserError(f"--out {out}: give the name of a new folder")


def sample_record(config: Config, tell: Tell) -> Record:
    """A held-out record, else a training record, else a made one; with a picture where the family reads pictures."""
    pictures = bool(picture_limits(config))
    for which in ("eval", "train"):
        source = getattr(config.data, which)
        try:
            record = next(_readable(config, source, which, pictures=pictures), None)
        except UserError:
            record = None  # a file that is gone; a made record does as well, and is told
        if record is not None:
            return record
    if not pictures:
        tell("none of the run's records can be read any more: compared on a made prompt")
        return Record("made", "image", "A red apple on a table")
    from PIL import Image

    tell("none of the run's records can be read any more: compared on a made picture")
    picture = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    return Record("made", "detection", "What is in the picture?", (picture,))


def _readable(config: Config, source: str | list[str] | None, which: str, *, pictures: bool) -> Iterator[Record]:
    limits = picture_limits(config)
    own = getattr(families.entry(config.family), "look", None)
    for record in records_of(config, source, which):
        if isinstance(record, Record) and (record.images or not pictures or (record.videos and own is not None)):
            try:
                if own is not None:
                    own(record, config, whole=False)
                for image in record.images:
                    check_header(image, **limits)
            except UserError:
                continue
            yield record


def records_of(config: Config, source: str | list[str] | None, which: str) -> Iterator[Record | UserError]:
    """Record by record, bad rows as what is wrong with them. Raises UserError for a file that is not there."""
    imitated = which == "train" and config_io.recipe_of(config).experience == "records"
    require = needed(config, imitation=imitated)
    for name in [source] if isinstance(source, str) else source or []:
        if config_io.is_embedded(name):
            yield from families.entry(config.family).builtin(name)
        else:
            yield from scan(Path(name), require=require)


def facts(path: Path, model: Path, config: Config, done: Exported) -> Facts:
    """What the model card tells, gathered from the run's own files; what they do not tell stays unknown."""
    state: dict[str, Any] = {}
    if (model.parent / checkpoint.MANIFEST).is_file():
        state = checkpoint.read_state(model.parent)
    counters = (state.get("trainer") or {}).get("counters") or {}
    run = run_folder(path)
    summary: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    start = str((state.get("config") or {}).get("model", {}).get("path") or "")
    if run is not None:
        summary = read_summary(run / "summary.json") if (run / "summary.json").is_file() else {}
        rows = read_metrics(run / "metrics.jsonl", [])
        start = str((yaml_io.read(run / "config.yaml").get("model") or {}).get("path") or start)
    step = state.get("step")
    return Facts(
        config=config,
        recipe=config_io.recipe_of(config),
        done=done,
        start=done.base or start or None,
        step=step,
        seconds=counters.get("seconds"),
        tokens=counters.get("tokens"),
        before=counters.get("before") or {},
        after=_evaluated(rows, step),
        chance=summary.get("chance") or {},
        data={which: _counted(config, which) for which in ("train", "eval") if getattr(config.data, which)},
    )


def _evaluated(rows: list[dict[str, Any]], step: int | None) -> dict[str, Any]:
    """The metrics of the held-out records at the exported step; empty when it was not evaluated."""
    at = [row for row in rows if row.get("step") == step]
    return {k.removeprefix("eval/"): v for row in at for k, v in row.items() if k.startswith("eval/")}


def _counted(config: Config, which: str) -> list[tuple[str, int | None]]:
    """The names of the sources and how many good records each holds; None where the file is gone."""
    source = getattr(config.data, which)
    found: list[tuple[str, int | None]] = []
    for name in [source] if isinstance(source, str) else source:
        try:
            number = sum(isinstance(r, Record) for r in records_of(config, name, which))
        except UserError:
            number = None
        found.append((name if config_io.is_embedded(name) else Path(name).name, number))
    return found
