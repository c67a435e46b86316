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

from torch import Tensor

from mmrl import config_io, families
from mmrl.config import Config
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from mmrl.launched import is_main
from mmrl.training import checkpoint, resuming
from mmrl.training.disk import WriteError, replace, resume_command, writing
from mmrl.training.evaluating import compared, measured
from mmrl.training.exchange import shared_policy
from mmrl.training.gallery import write_rollouts, write_samples
from mmrl.training.interrupt import Interrupted, Stop, caught_signals, saving
from mmrl.training.metrics import MetricsLog, SilentLog, clean, lines_to_keep
from mmrl.training.policy import Policy
from mmrl.training.progress import RunProgress
from mmrl.training.setup import build_trainer
from mmrl.training.state import Cursor
from mmrl.training.team import joined
from mmrl.training.trainer import Trainer

Tell = Callable[[str], None]


def train(config: Config, *, resume: bool = False, progress: bool = True) -> Path:
    """Train as configured and return the run folder.

    resume continues from the newest whole checkpoint, or from the start when there is none. A folder that holds another
    run is refused. Raises UserError for mistakes in the input, Interrupted after Ctrl-C or SIGTERM (a checkpoint is
    saved). A mistake that shows in mid-run saves the last whole step first. No file of the folder is touched before all
    that can be checked is checked. Started by torchrun, the processes train it together: the first one writes.
    """
    run = Path(config.out)
    _claim(run, resume)
    main = is_main()
    with (
        RunProgress(config.train.steps, 0, enabled=progress and main, max_seconds=config.train.max_seconds) as shown,
        caught_signals(run if main else None) as stop,
        joined(config.device, timeout_s=config.distributed.timeout_s) as (team, device),
        checkpoint.explained(run),
    ):
        stop.loading = True
        tell: Tell = shown.tell if main else (lambda message: None)
        trainer, policy, held_out = build_trainer(config.model_copy(update={"device": device}), tell, team)
        session = Session(run, config, trainer, policy, held_out, tell, resume=resume)
        shown.done = trainer.counters.step
        shown.bar.update(shown.task, completed=shown.done)
        stop.loading = False
        try:
            session.begin()
            signum = session.signalled(stop)
            while signum is None and not trainer.finished:
                shown.step(session.step(), trainer.counters.seconds)
                signum = session.signalled(stop)
            if signum is not None:
                session.save()
                raise Interrupted(signum, trainer.counters.step, run)
            session.finish()
        except UserError as error:
            if session.saved_step is not None and not isinstance(error, WriteError):
                kept = f"{run} is saved up to step {session.saved_step}"
                tell(f"{kept}; once this is mended, go on with: {resume_command(run)}")
            raise
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
        replace(run / "config.yaml", config_io.dump(config))
    except (OSError, WriteError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{run}: cannot write the run folder ({why}); choose another with out=...") from error


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
        self.team = trainer.team
        self.entry = families.entry(config.family)
        lines = self._restore() if resume else 0
        if trainer.counters.before:
            self._metric(trainer.counters.before)
        self.log = self.team.together(lambda: self._begin_log(lines))
        self.last_metrics: dict[str, float] | None = None
        self.saved_step: int | None = trainer.counters.step if resume and lines else None

    def _begin_log(self, lines: int) -> MetricsLog | SilentLog:
        """The main rank writes the files of the run; the others count its lines."""
        if not self.team.main:
            return SilentLog(lines)
        _open(self.run, self.config)
        settings, phases = self.config.model_dump(), len(self.trainer.channels) > 1
        return MetricsLog(self.run, self.config.log, keep_lines=lines, settings=settings, phases=phases)

    def signalled(self, stop: Stop) -> int | None:
        """The signal that any rank was sent."""
        return next((s for s in self.team.gather(stop.signum) if s is not None), None)

    def _restore(self) -> int:
        folder = self.team.by_main(lambda: checkpoint.newest_whole(self.run, tell=self.tell))
        if folder is None:
            if self.team.by_main(lambda: checkpoint.folders(self.run)):
                raise UserError(
                    f"{self.run}: every checkpoint is damaged, nothing to resume from; start anew with out=..."
                )
            self.tell("no checkpoint yet; starting from the beginning")
            return 0
        saved = self.team.together(lambda: checkpoint.read(folder))
        for note in resuming.changes(saved.state.get("config") or {}, config_io.plain(self.config), folder=folder):
            self.tell(note)
        counted, step = int(saved.state["metrics_lines"]), int(saved.state["step"])
        lines = self.team.by_main(lambda: lines_to_keep(self.run, counted, tell=self.tell))
        self.trainer.load_state(saved.tensors, saved.state["trainer"])
        self.team.by_main(lambda: checkpoint.set_aside_newer(self.run, step, tell=self.tell))
        self.tell(f"resuming from {folder.name}")
        return lines

    def begin(self) -> None:
        counters = self.trainer.counters
        if counters.step == 0 and self.log.lines == 0:
            before = self.evaluate(first=True)
            self._metric(before)  # a misspelt eval.metric shows before the first step
            counters.before = before
            self.log.write({"step": 0, **{f"eval/{k}": v for k, v in counters.before.items()}})
            self._samples()

    def step(self) -> dict[str, Any]:
        values = self._whole_step()
        step, every = self.trainer.counters.step, self.config.eval.every
        last = self.trainer.finished
        for sign in values.pop("signs"):
            self.tell(sign.line())
        if every and step % every == 0 or last:
            self._look_or_save(values)
        if self.trainer.turn % self.config.log.every == 0 or last or "eval/reward" in values:
            self.log.write(values | {"signs": self.trainer.diagnostics.take()})
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
        except UserError as error:
            if self.trainer.optimiser_steps == updates and cursor[1]["counters"]["step"] > 0:
                self._keep(error, cursor)
            raise

    def _look_or_save(self, values: dict[str, Any]) -> None:
        """The evaluation and the samples after a step, added to its values; the step is kept when they fail."""
        try:
            metrics = self.last_metrics = self.evaluate()
            values |= {f"eval/{k}": v for k, v in metrics.items()}
            self._note_best(metrics, self.trainer.counters.step)
            self._samples()
        except UserError as error:
            self._keep(error, values=values)
            raise

    def _keep(self, error: UserError, cursor: Cursor | None = None, *, values: dict[str, Any] | None = None) -> None:
        """Save after a mistake, with the log line of its step. When the disk fails besides, both are told."""
        try:
            if values is not None:
                self.log.write(values | {"signs": self.trainer.diagnostics.take()})
            self.save(cursor)
        except WriteError:
            self.tell(str(error))
            raise

    def evaluate(self, *, first: bool = False) -> dict[str, float]:
        """`first`: before any training; also tells what looks wrong with the answers, if the family can say so."""
        if not self.held_out:
            return {}
        with self.trainer.averaged(), shared_policy(self.policy, self.team) as policy:
            return measured(self.entry, policy, self.held_out, self.config, self.tell if first else None)

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
        with self.trainer.averaged(), self.policy.whole():
            self.team.by_main(self._write_samples)

    def _write_samples(self) -> None:
        trainer, shown = self.trainer, self.held_out[: self.config.eval.samples]
        step = trainer.counters.step
        with writing(self.run / "samples"):
            write_samples(
                self.run, step, self.policy, trainer.scorer, shown, seed=self.config.seed, weighing=trainer.weighing()
            )
            if trainer.last is not None and self.config.log.rollouts:
                write_rollouts(self.run, step, trainer.last, self.config.log.rollouts)

    def save(self, cursor: Cursor | None = None) -> None:
        """A checkpoint of the state now, or of the step that `cursor` was taken before."""
        step = cursor[1]["counters"]["step"] if cursor else self.trainer.counters.step
        if self.saved_step == step:
            return
        with saving():
            self._save(step, cursor)

    def _save(self, step: int, cursor: Cursor | None) -> None:
        here = self.team.main or self.policy.sharded  # only shards need the other ranks to be read
        tensors, state = self.trainer.state(cursor) if here else ({}, {})
        with self.trainer.averaged(), self.policy.whole():
            self.team.by_main(lambda: self._write_checkpoint(step, tensors, state))
        self.saved_step = step

    def _write_checkpoint(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        # the log on disk never lags behind a checkpoint that counts its lines
        self.log.sync()
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
            save_model=self.policy.save,
        )
        self.saved_step = step
        best = self.trainer.counters.best_step if self.config.checkpoint.keep_best else None
        checkpoint.prune(self.run, keep_last=self.config.checkpoint.keep_last, best=best, just_written=step)

    def finish(self) -> None:
        """Write summary.json; `after` is the evaluation of the last step (made now if this session did not train)."""
        counters = self.trainer.counters
        if self.saved_step is None and counters.step == 0:
            self.save()
        after = self.evaluate() if self.last_metrics is None else self.last_metrics
        before, after = compared(self.entry, counters.before, after)
        summary = {
            "family": self.config.family,
            "recipe": self.config.recipe,
            "control": self.config.train.control,
            "seed": self.config.seed,
            "chance": dict(self.entry.chance(self.held_out, self.config)) if self.held_out else {},
            "before": before,
            "after": after,
            "steps": counters.step,
            "seconds": round(counters.seconds, 3),
            "seconds_cpu": round(counters.seconds_cpu, 3),
            "tokens": counters.tokens,
            "best_step": counters.best_step,
            "reward_failures": counters.reward_failures,
            "skipped_records": counters.skipped_records + self.trainer.unread_records,
        }
        text = json.dumps(clean(summary), indent=1, allow_nan=False)
        self.team.by_main(lambda: replace(self.run / "summary.json", text))

    def close(self) -> None:
        self.log.close(self.tell)
        self.trainer.scoring.close()
