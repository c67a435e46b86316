"""Token sampler: every prompt is run once, its cache repeated per sample, rows decoded together, finished rows leave.

Axes: B prompts, N rows, A rows still being decoded, V vocabulary.

Each row draws all its uniform numbers before it starts, from its own stream, and picks tokens by the inverse of the
cumulative distribution: what it becomes does not depend on which rows it is decoded with.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mmrl.vlm import cache as caches
from mmrl.vlm.adapters import Shape
from mmrl.vlm.encode import Prompt, stack
from mmrl.vlm.head import Head
from mmrl.vlm.rows import Kept, Row


@dataclass(frozen=True)
class Settings:
    """How one row is sampled; `greedy` takes the most likely token (its log-probability is still the sampler's)."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    greedy: bool = False

    @property
    def cuts(self) -> bool:
        return not self.greedy and (self.top_p < 1.0 or self.top_k > 0)


@dataclass
class Job:
    """One row to sample."""

    prompt: Prompt
    settings: Settings
    generator: torch.Generator


@dataclass
class Sampled:
    row: Row
    logp: torch.Tensor  # float [T], of the distribution that was sampled from
    finished: bool


@dataclass
class Stats:
    forwards: int = 0
    tokens: int = 0
    row_steps: int = 0  # rows put through the model in decoding steps, padding rows included
    pictures: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return {k: float(v) for k, v in vars(self).items()}


def allowed_tokens(logits_av: torch.Tensor, top_p: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Bool [A, V]: first the `top_k` most likely (0 = all), then the fewest whose share reaches `top_p` (>= 1 = all).

    The most likely token always stays. Ties are broken by id, so that a set is well defined.
    """
    ordered, order = logits_av.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits_av.shape[-1], device=logits_av.device)
    keep = torch.isfinite(ordered) & ((rank < top_k[:, None]) | (top_k == 0)[:, None])
    share = torch.softmax(ordered.masked_fill(~keep, float("-inf")), -1)
    before = share.cumsum(-1) - share
    keep &= (before < top_p[:, None]) | (top_p >= 1.0)[:, None]
    keep[:, 0] = True
    return torch.zeros_like(keep).scatter(1, order, keep)


def pick(logits_av: torch.Tensor, uniform_a: torch.Tensor, greedy_a: torch.Tensor) -> torch.Tensor:
    """One token a row, [A]: inverse cumulative distribution at `uniform`, or the maximum where greedy."""
    cdf = torch.softmax(logits_av.double(), -1).cumsum(-1)
    total = cdf[:, -1]
    # rounding up to the total itself would run past the last possible token
    at = torch.minimum(uniform_a * total, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cdf, at[:, None], right=True)[:, 0]
    return torch.where(greedy_a, logits_av.argmax(-1), drawn) if bool(greedy_a.any()) else drawn


#: Keys and values of every layer [B, heads, P, d], last hidden states [B, d], padding mask [B, P].
_Prefilled = tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor, torch.Tensor]


@dataclass
class _Book:
    """What is written down while rows are decoded."""

    tokens: torch.Tensor  # int64 [N, T]
    logp: torch.Tensor  # [N, T]
    length: torch.Tensor  # int64 [N]
    finished: torch.Tensor  # bool [N]
    kept: list[list[torch.Tensor]] = field(default_factory=list)


class Sampler:
    """Samples completions with a model that is already on its device and in eval mode.

    batch_rows      rows decoded together.
    prompt_tokens   padded prompt tokens that go through the model at once.
    """

    def __init__(self, shape: Shape, *, ends: set[int], batch_rows: int, prompt_tokens: int) -> None:
        self.shape, self.batch_rows, self.prompt_tokens = shape, batch_rows, prompt_tokens
        self.ends = torch.tensor(sorted(ends), device=shape.device)
        self.stats = Stats()

    @torch.no_grad()
    def __call__(self, jobs: Sequence[Job], head: Head) -> list[Sampled]:
        """One completion per job, in the order of the jobs."""
        began = time.perf_counter()
        self.stats = Stats()
        by_prompt: dict[int, list[int]] = {}
        for i, job in enumerate(jobs):
            by_prompt.setdefault(id(job.prompt), []).append(i)
        groups = sorted(by_prompt.values(), key=lambda rows: len(jobs[rows[0]].prompt))  # little padding
        done: dict[int, Sampled] = {}
        for batch in _batches(groups, self.batch_rows):
            filled, hidden_bd, mask_bp = self._prefill([jobs[rows[0]].prompt for rows in batch])
            order = [(i, b) for b, rows in enumerate(batch) for i in rows]
            for start in range(0, len(order), self.batch_rows):
                part = order[start : start + self.batch_rows]
                prompt_n = torch.tensor([b for _, b in part], device=self.shape.device)
                state = (caches.growing(filled, prompt_n, self.shape.config), hidden_bd[prompt_n], mask_bp[prompt_n])
                found = self._decode([jobs[i] for i, _ in part], head, *state)
                done |= {i: sampled for (i, _), sampled in zip(part, found, strict=True)}
        self.stats.tokens = sum(len(s.row) for s in done.values())
        self.stats.seconds = time.perf_counter() - began
        return [done[i] for i in range(len(jobs))]

    def _prefill(self, prompts: list[Prompt]) -> _Prefilled:
        """Run the prompts and their pictures once, as many at a time as the token budget allows."""
        parts: list[list[Prompt]] = []
        for prompt in prompts:  # sorted by length: the last one is the longest
            if not parts or (len(parts[-1]) + 1) * len(prompt) > self.prompt_tokens:
                parts.append([])
            parts[-1].append(prompt)
        done = [self._prefill_together(part) for part in parts]
        return done[0] if len(done) == 1 else _side_by_side(done)

    def _prefill_together(self, prompts: list[Prompt]) -> _Prefilled:
        batch = stack(prompts, self.shape.device)
        cache = caches.empty(self.shape.config)
        hidden = self.shape.hidden(
            batch["ids"], mask=batch["mask"], positions=batch["positions"], media=batch["media"], cache=cache
        )
        self.stats.forwards += 1
        self.stats.pictures += len(batch["media"].get("image_grid_thw", ()))
        at = torch.arange(len(prompts), device=hidden.device)
        return caches.pairs(cache), hidden[at, batch["lengths"] - 1], batch["mask"]

    def _decode(
        self, jobs: list[Job], head: Head, cache: Any, hidden_ad: torch.Tensor, mask_ap: torch.Tensor
    ) -> list[Sampled]:
        device, n = self.shape.device, len(jobs)
        settings = [j.settings for j in jobs]
        limit = torch.tensor([s.max_new_tokens for s in settings], device=device)
        width = int(limit.max())
        uniform = torch.stack([_uniform(j, width) for j in jobs]).to(device)
        temperature = torch.tensor([s.temperature for s in settings], device=device, dtype=head.arithmetic)
        top_p = torch.tensor([s.top_p for s in settings], device=device, dtype=head.arithmetic)
        top_k = torch.tensor([s.top_k for s in settings], device=device)
        greedy = torch.tensor([s.greedy for s in settings], device=device)
        cuts = torch.tensor([s.cuts for s in settings], device=device)
        first = torch.tensor([j.prompt.next_position for j in jobs], device=device)
        book = _Book(
            tokens=torch.zeros(n, width, dtype=torch.long, device=device),
            logp=torch.zeros(n, width, dtype=head.arithmetic, device=device),
            length=torch.zeros(n, dtype=torch.long, device=device),
            finished=torch.zeros(n, dtype=torch.bool, device=device),
            kept=[[] for _ in jobs],
        )
        row = torch.arange(n, device=device)  # which job each decoded row belongs to
        alive = torch.ones(n, dtype=torch.bool, device=device)
        padded = bool((~mask_ap).any())
        for t in range(width):
            logits = head.raw(hidden_ad) / temperature[row, None] + head.forbidden
            if bool(cuts[row].any()):
                keep = allowed_tokens(logits, top_p[row], top_k[row]) | ~cuts[row, None]
                logits = logits.masked_fill(~keep, float("-inf"))
                _note_kept(book, keep, row, alive & cuts[row])
            token = pick(logits, uniform[row, t], greedy[row])
            logp = torch.log_softmax(logits, -1).gather(1, token[:, None])[:, 0]
            live = row[alive]
            book.tokens[live, t], book.logp[live, t] = token[alive], logp[alive]
            book.length[live] = t + 1
            ended = torch.isin(token, self.ends)
            book.finished[row[alive & ended]] = True
            alive &= ~ended & (limit[row] > t + 1)
            remaining = int(alive.sum())
            if remaining == 0:
                break
            if len(row) - remaining >= max(1, len(row) // 8):  # copying the cache pays from an eighth on
                keep_at = alive.nonzero()[:, 0]
                cache.batch_select_indices(keep_at)
                row, token, mask_ap = row[keep_at], token[keep_at], mask_ap[keep_at]
                alive = alive[keep_at]
            mask_ap = torch.cat([mask_ap, mask_ap.new_ones(len(row), 1)], 1)
            position = (first[row] + t)[None, :, None].expand(3, -1, 1)
            hidden_ad = self.shape.hidden(
                token[:, None], mask=mask_ap if padded else None, positions=position, cache=cache
            )[:, 0]
            self.stats.forwards += 1
            self.stats.row_steps += len(row)
        return _collect(jobs, book)


def _side_by_side(parts: list[_Prefilled]) -> _Prefilled:
    """Prompts that were run apart as one batch, padded on the right to the longest."""
    width = max(mask.shape[1] for _, _, mask in parts)

    def join(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([torch.nn.functional.pad(x, (0, 0, 0, width - x.shape[-2])) for x in tensors])

    layers = [
        (join([filled[i][0] for filled, _, _ in parts]), join([filled[i][1] for filled, _, _ in parts]))
        for i in range(len(parts[0][0]))
    ]
    masks = [torch.nn.functional.pad(mask, (0, width - mask.shape[1])) for _, _, mask in parts]
    return layers, torch.cat([hidden for _, hidden, _ in parts]), torch.cat(masks)


def _uniform(job: Job, width: int) -> torch.Tensor:
    """The row's own numbers, [width]; drawn to its own limit so that longer neighbours change nothing."""
    own = torch.rand(job.settings.max_new_tokens, generator=job.generator, dtype=torch.float64)
    return torch.nn.functional.pad(own, (0, width - len(own)))


def _note_kept(book: _Book, keep_av: torch.Tensor, row: torch.Tensor, wanted: torch.Tensor) -> None:
    for a in wanted.nonzero()[:, 0].tolist():
        book.kept[int(row[a])].append(keep_av[a].nonzero()[:, 0].cpu())


def _batches(groups: list[list[int]], limit: int) -> list[list[list[int]]]:
    """Groups of rows that share a prompt, put together up to `limit` rows (one group may be larger)."""
    batches: list[list[list[int]]] = []
    count = 0
    for group in groups:
        if not batches or count + len(group) > limit:
            batches.append([])
            count = 0
        batches[-1].append(group)
        count += len(group)
    return batches


def _collect(jobs: list[Job], book: _Book) -> list[Sampled]:
    tokens, logp = book.tokens.cpu(), book.logp.cpu()
    lengths, finished = book.length.tolist(), book.finished.tolist()
    found = []
    for i, job in enumerate(jobs):
        kept = None
        if job.settings.cuts:
            counts = torch.tensor([len(k) for k in book.kept[i]])
            kept = Kept(torch.cat(book.kept[i]), counts)
        row = Row(job.prompt, tokens[i, : lengths[i]].clone(), job.settings.temperature, kept)
        found.append(Sampled(row, logp[i, : lengths[i]].clone(), finished[i]))
    return found
