"""Rows with equal settings decoded together, block after block. Axes: n rows, r rows of a step, b block columns.

Rows advance from block to block together; inside a block each is run until it has no mask left. What a row becomes does
not depend on the others: it counts its own steps and draws its numbers from its own generator, for its whole block, at
its own steps only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dlm.canvas import Canvas
from dlm.rows import Kept
from dlm.sampling import counts, orders
from dlm.sampling.draw import Drawer, Drawn
from dlm.sampling.readers import Reader
from dlm.sampling.settings import Job, Sampled, Settings

#: (row, ids [L] with masks where nothing is filled yet, step of that row): called after each of its steps.
OnStep = Callable[[int, Tensor, int], None]


class Batch:
    """`canvas` and `readers` (one, or two with guidance, that see the same canvas) are on the model's device.

    ends   [e] ids that end an answer. leave_early   see `Settings.stop_early`. cut   what was not decoded is cut off.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        canvas: Canvas,
        readers: list[Reader],
        drawer: Drawer,
        *,
        ends: Tensor,
        leave_early: bool,
        cut: bool,
        on_step: OnStep | None,
    ) -> None:
        self.jobs, self.canvas, self.readers, self.drawer = jobs, canvas, readers, drawer
        self.ends, self.leave_early, self.cut, self.on_step = ends, leave_early, cut, on_step
        self.settings: Settings = jobs[0].settings
        device, shape = canvas.ids_nl.device, canvas.ids_nl.shape
        self.todo_nl = canvas.fillable_nl.clone()
        self.steps_nl = torch.full(shape, -1, dtype=torch.long, device=device)
        self.logp_nl = torch.zeros(shape, dtype=drawer.head.arithmetic, device=device)
        self.step_n = torch.zeros(shape[0], dtype=torch.long, device=device)
        masked = (
            canvas.fillable_nl[:, canvas.prefix :].view(len(jobs), canvas.blocks, canvas.block).sum(-1)
        )  # [n, blocks]
        self.blocks_n = (masked > 0).sum(-1)
        rule, steps = self.settings.rule, self.settings.steps
        self.scheduled = rule == "steps" or (rule == "threshold" and steps is not None)
        self.schedule_nk = torch.tensor(  # [n, blocks]: steps of each block
            [
                counts.block_steps(steps or max(1, job.limit // 2), masks)
                for job, masks in zip(jobs, masked.tolist(), strict=True)
            ],
            device=device,
        )
        self.kept: list[dict[int, Tensor]] = [{} for _ in jobs]
        self.denoising = 0

    def decode(self) -> list[Sampled]:
        rows = torch.arange(len(self.jobs), device=self.canvas.ids_nl.device)
        for block in range(self.canvas.blocks):
            for reader in self.readers:
                reader.enter(block, rows)
            self._fill(block, rows)
            rows = rows[self.blocks_n[rows] > block + 1]
            if self.leave_early:
                rows = rows[~self._ended(block, rows)]
            if not len(rows):
                break
            for reader in self.readers:
                reader.leave(block, rows)
        return [self._collect(i) for i in range(len(self.jobs))]

    def _columns(self, block: int) -> slice:
        start = self.canvas.prefix + block * self.canvas.block
        return slice(start, start + self.canvas.block)

    def _ended(self, block: int, rows: Tensor) -> Tensor:
        at = self._columns(block)
        return (torch.isin(self.canvas.ids_nl[rows, at], self.ends) & self.canvas.fillable_nl[rows, at]).any(-1)

    def _fill(self, block: int, rows: Tensor) -> None:
        at = self._columns(block)
        masked_r = self.todo_nl[rows, at].sum(-1)
        for step in range(self.canvas.block):
            open_rb = self.todo_nl[rows, at]
            live = open_rb.any(-1)
            if not bool(live.all()):
                rows, masked_r, open_rb = rows[live], masked_r[live], open_rb[live]
            if not len(rows):
                return
            hidden = [reader.hidden(block, rows)[open_rb] for reader in self.readers]
            drawn = self.drawer(hidden, self._uniform(rows, open_rb), open_rb.nonzero()[:, 1])
            self.denoising += 1
            budget_r = counts.budget(masked_r, self.schedule_nk[rows, block], step) if self.scheduled else None
            self._write(drawn, rows, open_rb, self._choose(drawn, open_rb, budget_r), at.start)

    def _uniform(self, rows: Tensor, open_rb: Tensor) -> Tensor | None:
        """Two numbers for every open position, float64 [2, m]; drawn for a row's whole block whatever is open."""
        if self.settings.takes_best and self.settings.order != "random":
            return None
        width = self.canvas.block
        drawn = torch.zeros(len(rows), 2, width, dtype=torch.float64)
        for i, n in enumerate(rows.tolist()):
            job = self.jobs[n]
            own = min(width, job.limit + int(self.canvas.tail_n[n]))  # longer neighbours change nothing
            drawn[i, :, :own] = torch.rand(2, own, generator=job.generator, dtype=torch.float64)
        return drawn.to(open_rb.device).transpose(0, 1)[:, open_rb]

    def _choose(self, drawn: Drawn, open_rb: Tensor, budget_r: Tensor | None) -> Tensor:
        """Which of the open positions are filled, bool [r, b]."""
        key_rb = drawn.key.new_full(open_rb.shape, float("-inf"))
        confidence_rb = key_rb.clone()
        key_rb[open_rb], confidence_rb[open_rb] = drawn.key, drawn.confidence
        if self.settings.eos == "late":
            end_rb = torch.zeros_like(open_rb)
            end_rb[open_rb] = torch.isin(drawn.ids, self.ends)
            late_rb = end_rb & (open_rb & ~end_rb).any(-1, keepdim=True)  # only ends left: as they are
            key_rb, confidence_rb = (x.masked_fill(late_rb, float("-inf")) for x in (key_rb, confidence_rb))
        rank_rb = orders.ranks(key_rb, open_rb)
        if self.settings.rule == "factor":
            return counts.by_factor(confidence_rb, rank_rb, open_rb, factor=self.settings.factor)
        floor_r = torch.ones_like(rank_rb[:, 0]) if budget_r is None else budget_r
        if self.settings.rule == "steps":
            return (rank_rb < floor_r[:, None]) & open_rb
        return counts.above(confidence_rb, rank_rb, open_rb, threshold=self.settings.threshold, floor_n=floor_r)

    def _write(self, drawn: Drawn, rows: Tensor, open_rb: Tensor, chosen_rb: Tensor, start: int) -> None:
        picked_m = chosen_rb[open_rb]
        which, column = chosen_rb.nonzero(as_tuple=True)
        row, column = rows[which], column + start
        self.canvas.ids_nl[row, column] = drawn.ids[picked_m]
        self.logp_nl[row, column] = drawn.logp[picked_m]
        self.steps_nl[row, column] = self.step_n[row]
        self.todo_nl[row, column] = False
        if drawn.keep is not None:
            self._note_kept(drawn.keep[picked_m], row.tolist(), column.tolist())
        self.step_n[rows] += 1
        if self.on_step is not None:
            for i in rows.tolist():
                self.on_step(i, self.canvas.completion(self.canvas.ids_nl, i).cpu(), int(self.step_n[i]) - 1)

    def _note_kept(self, keep_cv: Tensor, row: list[int], column: list[int]) -> None:
        sizes = keep_cv.sum(-1).tolist()
        for n, at, ids in zip(row, column, torch.split(keep_cv.nonzero()[:, 1].cpu(), sizes), strict=True):
            self.kept[n][at] = ids

    def _collect(self, i: int) -> Sampled:
        canvas = self.canvas
        ids, steps, logp = (canvas.completion(x, i).cpu() for x in (canvas.ids_nl, self.steps_nl, self.logp_nl))
        columns = canvas.fillable_nl[i].nonzero()[:, 0].tolist()
        if self.cut:
            size = int((steps >= 0).sum())  # whole blocks from the left
            ids, steps, logp, columns = ids[:size], steps[:size], logp[:size], columns[:size]
        kept = None
        if self.settings.cuts:
            none = torch.zeros(0, dtype=torch.long)
            sets = [self.kept[i].get(c, none) for c in columns]
            kept = Kept(torch.cat([none, *sets]), torch.tensor([len(s) for s in sets], dtype=torch.long))
        end = (torch.isin(ids, self.ends.cpu()) & (steps >= 0)).nonzero()[:, 0]
        length = int(end[0]) + 1 if len(end) else len(ids)
        return Sampled(ids, steps, logp, kept, int(self.step_n[i]), length, bool(len(end)))
