"""The entry of the sampler: jobs in, completions out, whatever the model's attention and the rules of decoding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dlm.canvas import Canvas, layout
from dlm.models.base import MaskedLM
from dlm.sampling.batch import Batch, OnStep
from dlm.sampling.blocks import CachedBlockReader, PlainBlockReader
from dlm.sampling.draw import Drawer
from dlm.sampling.full import FullReader
from dlm.sampling.readers import Reader
from dlm.sampling.settings import Job, Sampled, Settings, Stats
from mmrl.core.head import Head
from mmrl.errors import UserError

__all__ = ["Job", "Sampled", "Sampler", "Settings", "Stats"]


class Sampler:
    """Decodes completions with a model that is on its device and in eval mode.

    ends        ids that end an answer. suppressed  ids that are never drawn; the mask token always is one of them.
    block       columns decoded before the next, for full attention; None = the whole completion at once. A model of
                block attention has a grid of its own and uses that.
    batch_rows  rows decoded together.
    size        masked positions whose logits live at once.

    Raises UserError for settings that the model's attention does not have, and for a completion that does not fit
    into the model's window.
    """

    def __init__(
        self,
        model: MaskedLM,
        *,
        head: Head,
        ends: set[int],
        suppressed: set[int],
        block: int | None,
        batch_rows: int,
        size: int = 512,
    ) -> None:
        self.model, self.head, self.batch_rows, self.size = model, head, batch_rows, size
        self.block = model.traits.block if model.traits.attention == "block" else block
        self.device = head.weight.device
        self.ends = torch.tensor(sorted(ends), dtype=torch.long, device=self.device)
        never = torch.tensor(sorted(suppressed | {model.traits.mask_id}), device=self.device)
        self.forbidden = head.forbidden.clone().index_fill_(0, never, float("-inf"))
        self.stats = Stats()

    @torch.no_grad()
    def __call__(self, jobs: Sequence[Job], *, on_step: OnStep | None = None) -> list[Sampled]:
        """One completion per job, in the order of the jobs.

        on_step(i, ids [L], step) is called after every step of job i, with masks where nothing is filled yet; the jobs
        that a forward filled tokens of are told in ascending order.
        """
        began = time.perf_counter()
        self.stats = Stats()
        by_settings: dict[Settings, list[int]] = {}
        for i, job in enumerate(jobs):
            self._check(job)
            by_settings.setdefault(job.settings, []).append(i)
        done: dict[int, Sampled] = {}
        for alike in by_settings.values():
            alike.sort(key=lambda i: len(jobs[i].prompt_ids))  # little padding
            for start in range(0, len(alike), self.batch_rows):
                part = sorted(alike[start : start + self.batch_rows])
                found = self._decode([jobs[i] for i in part], on_step and _renumbered(on_step, part))
                done |= dict(zip(part, found, strict=True))
        self.stats.tokens = sum(int((s.steps >= 0).sum()) for s in done.values())
        self.stats.seconds = time.perf_counter() - began
        return [done[i] for i in range(len(jobs))]

    def _decode(self, jobs: list[Job], on_step: OnStep | None) -> list[Sampled]:
        settings, traits = jobs[0].settings, self.model.traits
        limits = [job.limit for job in jobs]
        on_cpu = layout([job.prompt_ids for job in jobs], limits, traits, block=self.block or max(limits))
        canvas = _moved(on_cpu, self.device)
        readers = [self._reader(canvas, settings, None)]
        if settings.guidance > 0:
            readers.append(self._reader(canvas, settings, canvas.valid_nl & ~canvas.fillable_nl))
        forbidden = self.forbidden
        if settings.eos == "never":
            forbidden = forbidden.index_fill(0, self.ends, float("-inf"))
        blockwise = traits.attention == "block"
        of = settings.confidence if settings.confidence != "auto" else ("sampled" if blockwise else "model")
        leave_early = blockwise if settings.stop_early is None else settings.stop_early
        batch = Batch(
            jobs,
            canvas,
            readers,
            Drawer(self.head, forbidden, settings, of, self.size),
            ends=self.ends,
            leave_early=leave_early,
            cut=blockwise and leave_early,
            on_step=on_step,
        )
        found = batch.decode()
        self.stats.denoising += batch.denoising
        self.stats.total += sum(r.forwards for r in readers)
        self.stats.row_steps += sum(r.row_forwards for r in readers)
        return found

    def _reader(self, canvas: Canvas, settings: Settings, hide_nl: Tensor | None) -> Reader:
        if self.model.traits.attention == "full":
            return FullReader(self.model, canvas, cache=settings.cache, refresh=settings.refresh, hide_nl=hide_nl)
        kind = CachedBlockReader if settings.cache == "block" else PlainBlockReader
        return kind(self.model, canvas, hide_nl=hide_nl)

    def _check(self, job: Job) -> None:
        traits, cache = self.model.traits, job.settings.cache
        if cache == "block" and traits.attention == "full":
            raise UserError(
                f"cache: block is for block attention, and {traits.name} has full attention; use off, prefix or dual"
            )
        if cache in ("prefix", "dual") and traits.attention == "block":
            raise UserError(f"cache: {cache} is for full attention, and {traits.name} has block attention; use block")
        if cache != "off" and traits.logit_shift:
            raise UserError(
                f"cache: {cache} needs logits at their own position, and those of {traits.name} are shifted; use off"
            )
        if job.limit < 1:
            raise UserError(f"a completion of {job.limit} positions cannot be decoded; max_new_tokens is at least 1")
        if len(job.prompt_ids) + job.limit > traits.window:
            raise UserError(
                f"a prompt of {len(job.prompt_ids)} tokens and a completion of {job.limit} exceed the model's window "
                f"of {traits.window}; shorten the prompt or max_new_tokens"
            )


def _moved(canvas: Canvas, device: torch.device) -> Canvas:
    ids, valid, positions, fillable = (
        x.to(device) for x in (canvas.ids_nl, canvas.valid_nl, canvas.positions_nl, canvas.fillable_nl)
    )
    return replace(canvas, ids_nl=ids, valid_nl=valid, positions_nl=positions, fillable_nl=fillable)


def _renumbered(on_step: OnStep, part: list[int]) -> OnStep:
    return lambda row, ids_l, step: on_step(part[row], ids_l, step)
