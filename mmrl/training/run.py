"""A run from start to end: its folder, evaluation before and after, checkpoints, resume, interruption.

run/config.yaml metrics.jsonl summary.json checkpoints/step-XXXXXX/ samples/ report.html tensorboard/
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmrl import config_io, families, yaml_io
from mmrl.config import Config
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from mmrl.paths import find_config
from mmrl.training import checkpoint, resuming
from mmrl.training.gallery import write_rollouts, write_samples
from mmrl.training.interrupt import Interrupted, caught_signals
from mmrl.training.metrics import MetricsLog, clean, lines_to_keep
from mmrl.training.policy import Policy
from mmrl.training.progress import RunProgress
from mmrl.training.setup import build_trainer, load_records, prepare_machine
from mmrl.training.state import Cursor
from mmrl.training.trainer import Trainer

Tell = Callable[[str], None]


def train(config: Config, *, resume: bool = False, progress: bool = True) -> Path:
    """Train as configured and return the run folder.

    resume continues from the newest whole checkpoint, or from the start when there is none. A folder that holds another
    run is refused. Raises UserError for mistakes in the input, Interrupted after Ctrl-C or SIGTERM (a checkpoint is
    saved). A mistake that shows in mid-run saves the last whole step first. No file of the folder is touched before all
    that can be checked is checked.
    """
    run = Path(config.out)
    _claim(run, resume)
    with RunProgress(config.train.steps, 0, enabled=progress) as shown, caught_signals() as stop:
        trainer, policy, held_out = build_trainer(config, shown.tell)
        session = Session(run, config, trainer, policy, held_out, shown.tell, resume=resume)
        shown.done = trainer.counters.step
        shown.bar.update(shown.task, completed=shown.done)
        try:
            session.begin()
            while trainer.counters.step < config.train.steps:
                shown.step(session.step())
                if stop.signum is not None:
                    session.save()
                    raise Interrupted(stop.signum, trainer.counters.step)
            session.finish()
        finally:
            session.close()
    return run


def _claim(run: Path, resume: bool) -> None:
    """Raises UserError for a folder that holds another run, or, to resume, none."""
    log = run / "metrics.jsonl"
    taken = (log.is_file() and log.stat().st_size > 0) or (run / "checkpoints").exists()
    if taken and not resume:
        raise UserError(f"{run}: holds a run already; continue it with --resume, or choose another folder with out=...")
    if resume and not (run / "config.yaml").exists():
        raise UserError(f"{run}: nothing to resume here; start it without --resume")
    above = next(p for p in (run, *run.resolve().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        reason = "is no folder" if not above.is_dir() else "cannot be written to"
        raise UserError(f"{run}: cannot make the run folder, {above} {reason}; choose another with out=...")


def _open(run: Path, config: Config) -> None:
    """The folder and its config.yaml."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(config_io.dump(config), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{run}: cannot write the run folder ({error.strerror}); choose another with out=..."
        ) from error


class Session:
    """The files of one run while it trains."""

    def __init__(
        self,
        run: Path,
        config: Config,
        trainer: Trainer,
        policy: Policy,
        held_out: list[Record],
        tell: Tell,
        *,
        resume: bool,
    ) -> None:
        self.run, self.config, self.trainer, self.policy, self.held_out, self.tell = (
            run,
            config,
            trainer,
            policy,
            held_out,
            tell,
        )
        self.entry = families.entry(config.family)
        lines = self._restore() if resume else 0
        if trainer.counters.before:
            self._metric(trainer.counters.before)
        _open(run, config)
        self.log = MetricsLog(run, config.log, keep_lines=lines, settings=config.model_dump())
        self.last_metrics: dict[str, float] | None = None
        self.saved_step: int | None = trainer.counters.step if resume and lines else None

    def _restore(self) -> int:
        folder = checkpoint.newest_whole(self.run, tell=self.tell)
        if folder is None:
            if checkpoint.folders(self.run):
                raise UserError(
                    f"{self.run}: every checkpoint is damaged, nothing to resume from; start anew with out=..."
                )
            self.tell("no checkpoint yet; starting from the beginning")
            return 0
        saved = checkpoint.read(folder)
        for note in resuming.changes(saved.state.get("config") or {}, config_io.plain(self.config), folder=folder):
            self.tell(note)
        lines = lines_to_keep(self.run, int(saved.state["metrics_lines"]), tell=self.tell)
        self.trainer.load_state(saved.tensors, saved.state["trainer"])
        checkpoint.set_aside_newer(self.run, int(saved.state["step"]), tell=self.tell)
        self.tell(f"resuming from {folder.name}")
        return lines

    def begin(self) -> None:
        counters = self.trainer.counters
        if counters.step == 0 and self.log.lines == 0:
            before = self.evaluate()
            self._metric(before)  # a misspelt eval.metric shows before the first step
            counters.before = before
            self.log.write({"step": 0, **{f"eval/{k}": v for k, v in counters.before.items()}})
            self._samples()

    def step(self) -> dict[str, Any]:
        values = self._whole_step()
        step, every = self.trainer.counters.step, self.config.eval.every
        last = step == self.config.train.steps
        for warning in values["warnings"]:
            self.tell(f"step {step}: {warning}")
        if every and step % every == 0 or last:
            metrics = self.last_metrics = self._evaluate_or_save(values)
            values |= {f"eval/{k}": v for k, v in metrics.items()}
            self._note_best(metrics, step)
            self._samples()
        if step % self.config.log.every == 0 or last or "eval/reward" in values:
            self.log.write(values)
        if (
            self.config.checkpoint.every
            and step % self.config.checkpoint.every == 0
            or last
            or self.trainer.counters.best_step == step
            and self.config.checkpoint.keep_best
        ):
            self.save()
        return values

    def _whole_step(self) -> dict[str, Any]:
        """One step. A mistake found before it changed a weight (a reward that raises, a picture that is gone) costs
        nothing: the state before the step is saved, and --resume tries the same step again."""
        cursor, updates = self.trainer.cursor(), self.trainer.optimiser_steps
        try:
            return self.trainer.step()
        except UserError:
            if self.trainer.optimiser_steps == updates and self.trainer.counters.step > 0:
                self.save(cursor)
            raise

    def _evaluate_or_save(self, values: dict[str, Any]) -> dict[str, float]:
        """The evaluation after a step; the step is kept when the evaluation fails."""
        try:
            return self.evaluate()
        except UserError:
            self.log.write(values)
            self.save()
            raise

    def evaluate(self) -> dict[str, float]:
        if not self.held_out:
            return {}
        with self.trainer.averaged():
            return dict(self.entry.evaluate(self.policy, self.held_out, self.config))

    def _note_best(self, metrics: dict[str, float], step: int) -> None:
        counters = self.trainer.counters
        if not metrics:
            return
        value = self._metric(metrics)
        if math.isfinite(value) and (counters.best is None or value > counters.best):
            counters.best, counters.best_step = value, step

    def _metric(self, metrics: dict[str, float]) -> float:
        """The one that decides; nan when nothing was evaluated."""
        name = self.config.eval.metric
        if metrics and name not in metrics:
            raise UserError(f"eval.metric: no metric {name!r} in the evaluation{nearest(name, metrics)}")
        return metrics.get(name, math.nan)

    def _samples(self) -> None:
        shown = self.held_out[: self.config.eval.samples]
        with self.trainer.averaged():
            write_samples(
                self.run,
                self.trainer.counters.step,
                self.policy,
                self.trainer.scorer,
                shown,
                seed=self.config.seed,
            )

        if self.trainer.last is not None and self.config.log.rollouts:
            write_rollouts(self.run, self.trainer.counters.step, self.trainer.last, self.config.log.rollouts)

    def save(self, cursor: Cursor | None = None) -> None:
        """A checkpoint of the state now, or of the step that `cursor` was taken before."""
        step = self.trainer.counters.step
        if self.saved_step == step:
            return
        tensors, state = self.trainer.state(cursor)

        def save_model(path: Path) -> None:
            with self.trainer.averaged():
                self.policy.save(path)

        # the log on disk never lags behind a checkpoint that counts its lines
        os.fsync(self.log.file.fileno())
        checkpoint.write(
            self.run,
            step,
            tensors=tensors,
            state={
                "step": step,
                "metrics_lines": self.log.lines,
                "config": config_io.plain(self.config),
                "trainer": state,
            },
            save_model=save_model,
        )
        best = self.trainer.counters.best_step if self.config.checkpoint.keep_best else None
        checkpoint.prune(self.run, keep_last=self.config.checkpoint.keep_last, best=best, just_written=step)
        self.saved_step = step

    def finish(self) -> None:
        """Write summary.json; `after` is the evaluation of the last step (made now if this session did not train)."""
        counters = self.trainer.counters
        if self.saved_step is None and counters.step == 0:
            self.save()
        after = self.evaluate() if self.last_metrics is None else self.last_metrics
        summary = {
            "family": self.config.family,
            "recipe": self.config.recipe,
            "control": self.config.train.control,
            "seed": self.config.seed,
            "chance": dict(self.entry.chance(self.held_out, self.config)) if self.held_out else {},
            "before": counters.before,
            "after": after,
            "steps": counters.step,
            "seconds": round(counters.seconds, 3),
            "tokens": counters.tokens,
            "best_step": counters.best_step,
            "reward_failures": counters.reward_failures,
            "skipped_records": counters.skipped_records + self.trainer.unread_records,
        }
        temporary = self.run / "summary.json.tmp"
        temporary.write_text(json.dumps(clean(summary), indent=1, allow_nan=False))
        os.replace(temporary, self.run / "summary.json")

    def close(self) -> None:
        self.log.close()
        self.trainer.scorer.close()


def model_folder(path: Path) -> Path:
    """The model inside a run folder (its best step), a step folder or an exported folder."""
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; give a run folder, a step folder or an exported folder")
    if (path / "checkpoints").is_dir():
        steps = checkpoint.folders(path)
        if not steps:
            raise UserError(f"{path}: the run has no checkpoint yet")
        best = checkpoint.read_state(steps[-1])["trainer"]["counters"]["best_step"]
        best_folder = checkpoint.step_folder(path, best) if best is not None else steps[-1]
        path = best_folder if best_folder.is_dir() else steps[-1]
    if (path / checkpoint.MANIFEST).exists() or (path / "model").is_dir():
        problem = checkpoint.fault(path)
        if problem:
            raise UserError(f"{path}: damaged checkpoint ({problem}); use another step folder of the run")
        return path / "model"
    return path


def run_config(path: Path, config: str | Path | None, *, data: str | None = None) -> Config:
    """The configuration a checkpoint is used with: the one given, else that of its own run.

    data   the one entry of `data` that is read, train or eval. Files of the others need not be there any more.
    """
    if config is not None:
        return _resolve_without(config, data)
    whole = path.resolve()
    folder = whole if whole.name != "model" else whole.parent
    run = folder.parents[1] if folder.parent.name == "checkpoints" else whole
    if (run / "config.yaml").is_file():
        return _resolve_without(run / "config.yaml", data)
    raise UserError(f"{path}: its run's config.yaml is not there; name one with --config")


def _resolve_without(file: str | Path, data: str | None) -> Config:
    """`config_io.resolve`, but entries of `data` other than the named one may name files that are gone."""
    found = find_config(file)
    raw = yaml_io.read(found)
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


def evaluate_run(path: Path, config: Path | None = None) -> dict[str, float]:
    """Greedy metrics of a checkpoint on the evaluation records of a configuration."""
    folder = model_folder(path)
    resolved = run_config(path, config, data="eval")
    if resolved.data.eval is None:
        raise UserError("data.eval: the configuration names no evaluation records; add some, or give another --config")
    prepare_machine(resolved)
    records = load_records(resolved, "eval")
    resolved.model.path = str(folder)
    entry = families.entry(resolved.family)
    return dict(entry.evaluate(entry.load_policy(resolved), records, resolved))
