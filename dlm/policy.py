"""The policies of masked diffusion language models: `mmrl.training.policy.Policy` over any `MaskedLM`.

Axes: N rollouts, T completion positions (the canvas), n rows of a piece, l positions of its longest row.

What a value of the table means depends on how likelihood is estimated. `ElboPolicy`: terms of a bound, of which only
the row's sum has a meaning (SDMC and its relatives). `TokenPolicy`: a log-probability each (the decoding's own steps,
the one-step estimate of diffu-GRPO, imitation).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlm import forward
from dlm.assemble import CHANNEL, assemble
from dlm.config import Inputs, Model, Sampling
from dlm.encode import Encoder
from dlm.likelihood import registry
from dlm.likelihood.base import Estimator, View
from dlm.models import lora
from dlm.models.base import Traits
from dlm.models.layers import Transformer
from dlm.models.loading import save_model
from dlm.pieces import Chunk, Planner
from dlm.rows import Row
from dlm.sampling.batch import OnStep
from dlm.sampling.sampler import Job, Sampled, Sampler, Settings
from dlm.show import trajectory_lines
from mmrl.core.head import Choice, Head, score
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import UserError, nearest
from mmrl.training import precision, weights
from mmrl.training.exported import NOTE as NOTE
from mmrl.training.policy import Bundle, Needs, Piece, Policy, Scope, Unit
from mmrl.training.reference import Reference
from mmrl.training.rollouts import Request, Rollouts

#: How much larger a piece without gradient may be.
WITHOUT_GRAPH = 4
#: What a request may change of the sampling section.
OVERRIDES = ("temperature", "top_p", "top_k", "max_new_tokens", "rule", "threshold", "steps")


class ElboPolicy(Policy):
    """A loaded model with its tokenizer, on its device; its adapter, if it has one, lies inside.

    adapter_at_zero   the adapter is fresh, so that switching it off gives the reference.
    """

    unit: Unit = "row"
    channels = (CHANNEL,)
    provides = frozenset({"logp_nt"})
    keys = frozenset({"prompt", "record", "task"})

    def __init__(
        self,
        model: Transformer,
        tokenizer: Any,
        *,
        options: Model,
        sampling: Sampling,
        inputs: Inputs,
        adapter_at_zero: bool = False,
    ) -> None:
        self.model: Transformer = model  # adapters are put into it in place
        self.tokenizer = tokenizer
        self.options, self.sampling, self.inputs = options, sampling, inputs
        self.traits: Traits = model.traits
        self.grid = self.traits.attention == "block"
        self.block = self.traits.block or sampling.block or sampling.max_new_tokens
        extra = tuple(i for i in self._ids(sampling.stop) if i not in self.traits.eos_ids)
        self.ends = self.traits.eos_ids + extra
        self.encoder = Encoder(tokenizer, self.traits, inputs, ends=self.ends)
        own = sampling.likelihood
        self.estimator: Estimator = registry.make(own.name, own.options)
        level = {"level": "block"} if self.grid else {}
        told = own.options if own.name == "elbo" else {}
        self.imitation: Estimator = registry.make("elbo", {**level, **told})
        if not self.estimator.exclusive:  # the views of a position have an entropy each
            self.provides = self.provides - {"entropy_nt"}
        self.noise_per_update = self.estimator.random
        self.on_step: OnStep | None = None  # told of every step of the decoding (`mmrl generate` shows it)
        self._reference = Reference(model, without_adapter=(lambda: lora.reference(model)) if adapter_at_zero else None)

    @property
    def device(self) -> torch.device:
        return self.model.head.weight.device

    # sampling

    def sampler(self) -> Sampler:
        """The token sampler over the weights as they are now."""
        return Sampler(
            self.model,
            ends=set(self.ends),
            suppressed={self.traits.mask_id},
            block=self.sampling.block,
            batch_rows=self.sampling.batch_rows,
            head=self.head(as_sampled=True),
        )

    def rollout(self, requests: Sequence[Request], streams: Streams, *, greedy: bool = False) -> Rollouts:
        jobs: list[Job] = []
        for request in requests:
            settings, limit = self.settings(request.sampling, greedy=greedy)
            prompt = self.encoder.prompt(request.record, request.prompt_edit, limit)
            for sample in range(request.first_sample, request.first_sample + request.n):
                jobs.append(Job(prompt, limit, settings, streams.generator(request.record.id, sample)))
        sampler = self.sampler()
        with torch.no_grad(), self._autocast():
            found = sampler(jobs, on_step=self.on_step)
        samples = [(r.record.id, r.first_sample + j) for r in requests for j in range(r.n)]
        rows = [
            _row(job, one, seed=streams.generator(*sample, use="likelihood").initial_seed())
            for job, one, sample in zip(jobs, found, samples, strict=True)
        ]
        return assemble(
            requests,
            rows,
            texts=[self.encoder.decode(row.ids) for row in rows],
            finished=[one.finished for one in found],
            logps=[one.logp for one in found] if self._comparable else None,
            stats=sampler.stats.as_dict(),
            sampling=self.sampling,
        )

    @property
    def _comparable(self) -> bool:
        """The estimate recomputes the sampler's own log-probabilities."""
        return not self.estimator.random and self.estimator.needs_steps

    def settings(self, overrides: dict[str, Any], *, greedy: bool) -> tuple[Settings, int]:
        """(how to decode, length of the canvas); UserError for an override that does not exist."""
        for name in overrides:
            if name not in OVERRIDES:
                raise UserError(f"sampling override: unknown option {name!r}{nearest(name, OVERRIDES)}")
        own = Sampling.model_validate(self.sampling.model_dump() | overrides)
        temperature = own.eval_temperature if greedy else own.temperature
        threshold = own.threshold
        if greedy and own.eval_threshold is not None and "threshold" not in overrides:
            threshold = own.eval_threshold
        return (
            Settings(
                temperature=temperature,
                top_p=own.top_p,
                top_k=own.top_k,
                order=own.order,
                rule=own.rule,
                steps=own.steps,
                threshold=threshold,
                factor=own.factor,
                cache=own.cache,
                refresh=own.refresh,
                guidance=own.guidance,
                eos=own.eos,
            ),
            own.max_new_tokens,
        )

    def demonstrations(self, records: Sequence[Record], streams: Streams) -> Rollouts:
        limit, rows = self.sampling.max_new_tokens, []
        for record in records:
            prompt = self.encoder.prompt(record, None, limit)
            ids, length = self.encoder.demonstration(record, limit)
            if self.grid:  # the last block is written whole
                fill = -(len(prompt) + len(ids)) % self.block
                ids = torch.cat([ids, ids.new_full((fill,), self.ends[0])])
            seed = streams.generator(record.id, 0, use="likelihood").initial_seed()
            rows.append(Row(prompt, ids, torch.full_like(ids, -1), length, seed=seed, demonstration=True))
        return assemble(
            [Request(record, 1) for record in records],
            rows,
            texts=[str(r.response) for r in records],
            finished=[True] * len(rows),
            logps=None,
            stats={},
            sampling=self.sampling.model_copy(
                update={"likelihood": self.sampling.likelihood.model_copy(update={"region": "canvas"})}
            ),
        )

    # likelihood

    def bundles(self, rollouts: Rollouts, *, channel: str, update: int, scope: Scope) -> list[Bundle]:
        """Pieces by budget, whatever the scope: a wider one takes two passes, so that memory stays that of a piece.

        Without gradient pieces are larger: there is no graph to hold. The old pass is therefore cut otherwise than the
        update, and a gap between the two shows a mistake in either.
        """
        if not len(rollouts):
            return []
        mask_nt = rollouts.tables[channel]["mask_nt"].bool()
        rows: list[Row] = rollouts.rows
        regions = [mask_nt[i, : len(row)] for i, row in enumerate(rows)]
        planner = Planner(
            estimator=self.imitation if rows[0].demonstration else self.estimator,
            block=self.block,
            grid=self.grid,
            budget=self.options.piece_tokens * (1 if torch.is_grad_enabled() else WITHOUT_GRAPH),
            packed=self.options.packing,
        )
        return planner.bundles(rows, regions, width=mask_nt.shape[1], update=update)

    def evaluate(self, piece: Piece, shared: Any, needs: Needs) -> dict[str, Tensor]:
        """Tables [n, T]: sums over the piece's views, zero where none of them reads."""
        if needs.reducers:
            raise UserError(
                f"family dlm has no logit reducers yet: {', '.join(sorted(needs.reducers))}; choose another recipe"
            )
        chunk: Chunk = piece.data
        with self._autocast():
            return self._tables(chunk, needs)

    def _tables(self, chunk: Chunk, needs: Needs) -> dict[str, Tensor]:
        stacked = _stack(chunk)
        rows, device = [chunk.rows[i] for i in stacked.row_m.tolist()], self.device
        hidden = forward.completion_hidden(
            self.model,
            rows,
            masked_nl=stacked.view.masked_nl,
            prompt_masked_np=stacked.view.prompt_masked_np,
            guidance=0.0 if rows[0].demonstration else self.sampling.guidance,
            packed=self.options.packing,
        )
        scored = stacked.view.scored_nl
        at_row, at_column = scored.nonzero(as_tuple=True)
        entropy = "entropy_nt" in needs.channels
        logp, h = score(
            hidden[scored.to(device)],
            self.head(as_sampled=self._as_sampled(rows)),
            self._choice(rows, scored),
            size=self.options.head_chunk,
            entropy=entropy,
        )
        weight = stacked.view.weight_nl[scored].to(logp)
        where = (stacked.row_m[at_row].to(device), at_column.to(device))

        def table(values: Tensor) -> Tensor:
            empty = values.new_zeros(len(chunk.rows), chunk.width)
            return empty.index_put(where, values, accumulate=True)

        out = {"logp_nt": table(logp * weight)}
        out["supervised_nt"] = -out["logp_nt"]
        if entropy:
            out["entropy_nt"] = table(h)
        return {name: value for name, value in out.items() if name in needs.channels}

    def _as_sampled(self, rows: Sequence[Row]) -> bool:
        """Under the sampler's own distribution: its temperature, its cuts, no mask token. Bounds are of the model."""
        return not self.estimator.random and not rows[0].demonstration

    def _choice(self, rows: Sequence[Row], scored_nl: Tensor) -> Choice:
        device = self.device
        ids = torch.cat([row.ids[scored_nl[i, : len(row)]] for i, row in enumerate(rows)]).to(device)
        count_n = scored_nl.sum(1)
        if not self._as_sampled(rows):
            return Choice(ids, torch.ones(len(ids), device=device, dtype=torch.float64))
        # a greedy row was drawn at temperature 0: its tokens are read at 1
        temperature_n = torch.tensor([row.temperature or 1.0 for row in rows], dtype=torch.float64)
        temperature = temperature_n.repeat_interleave(count_n).to(device)
        if all(row.kept is None for row in rows):
            return Choice(ids, temperature)
        kept, counts = zip(*(_kept(row, scored_nl[i, : len(row)]) for i, row in enumerate(rows)), strict=True)
        return Choice(ids, temperature, torch.cat(kept).to(device), torch.cat(counts).to(device))

    def head(self, *, as_sampled: bool) -> Head:
        """The output layer in this pass's precision; `as_sampled`: without the tokens that are never drawn."""
        layer = self.model.head
        forbidden = torch.zeros(layer.weight.shape[0], device=layer.weight.device)
        if as_sampled:
            never = [self.traits.mask_id, *(self.ends if self.sampling.eos == "never" else ())]
            forbidden[never] = float("-inf")
        dtype = torch.bfloat16 if self._half else layer.weight.dtype
        bias = getattr(layer, "bias", None)
        return Head(layer.weight, bias, forbidden.to(torch.promote_types(dtype, torch.float32)), dtype)

    @property
    def _half(self) -> bool:
        return precision.is_half(self.options.autocast, self.device)

    def _autocast(self) -> AbstractContextManager[Any]:
        return precision.autocast(self.options.autocast, self.device)

    def _ids(self, tokens: Sequence[str | int]) -> list[int]:
        """Ids of `sampling.stop`; UserError for text that is not exactly one token."""
        found = []
        for token in tokens:
            ids = [token] if isinstance(token, int) else self.tokenizer(token, add_special_tokens=False)["input_ids"]
            if len(ids) != 1 or not 0 <= ids[0] < self.model.head.weight.shape[0]:
                raise UserError(f"sampling.stop: {token!r} is not one token of this model; give single tokens or ids")
            found.append(int(ids[0]))
        return found

    # weights

    def reference(self) -> AbstractContextManager[None]:
        return self._reference.active()

    def keep_reference(self, channel: str) -> None:
        self._reference.keep()

    def parameters_of(self, channel: str) -> list[torch.nn.Parameter]:
        return list(weights.trainable(self.model).values())

    def state_dict(self) -> dict[str, Tensor]:
        return weights.trainable_state(self.model)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        weights.load_trainable(self.model, state)

    def save(self, path: Path) -> None:
        """The layout of the release: the whole model, or the adapter with the names of the released modules."""
        if self.options.adapter.kind == "lora":
            lora.save(self.model, path)
            self.tokenizer.save_pretrained(path)
            write_note(path)
        else:
            save_model(self.model, self.tokenizer, path)

    # people

    def describe(self, rollouts: Rollouts, rows: Iterable[int]) -> list[dict[str, Any]]:
        """Prompt, output, and how the canvas was filled, as lines of text."""
        return [
            {
                "prompt": self.encoder.text(rollouts.records[i]),
                "output": str(rollouts.outputs[i]),
                "trajectory": trajectory_lines(self.tokenizer, rollouts.rows[i]),
            }
            for i in rows
        ]


def write_note(folder: Path) -> None:
    """Say beside weights which family they are of."""
    (folder / NOTE).write_text(json.dumps({"family": "dlm"}) + "\n", encoding="utf-8")


class TokenPolicy(ElboPolicy):
    """The same where every position has a log-probability of its own."""

    unit: Unit = "decision"
    provides = frozenset({"logp_nt", "entropy_nt", "supervised_nt"})


class _Stacked:
    """Rows under views, one after the other: m = all pairs that read something. `row_m`: which row of the chunk."""

    def __init__(self, row_m: Tensor, view: View) -> None:
        self.row_m, self.view = row_m, view


def _stack(chunk: Chunk) -> _Stacked:
    index, masked, scored, weight, prompts = [], [], [], [], []
    for view in chunk.views:
        at = view.scored_nl.any(1).nonzero()[:, 0]
        index.append(at)
        masked.append(view.masked_nl[at])
        scored.append(view.scored_nl[at])
        weight.append(view.weight_nl[at])
        if view.prompt_masked_np is not None:
            prompts.append(view.prompt_masked_np[at])
    if prompts and len(prompts) < len(chunk.views):
        raise ValueError("views of one estimator either all mask the prompt or none does")
    prompt = torch.cat(prompts) if prompts else None
    return _Stacked(torch.cat(index), View(torch.cat(masked), torch.cat(scored), torch.cat(weight), prompt))


def _row(job: Job, one: Sampled, *, seed: int) -> Row:
    return Row(job.prompt_ids, one.ids, one.steps, one.length, job.settings.temperature, one.kept, seed)


def _kept(row: Row, scored_l: Tensor) -> tuple[Tensor, Tensor]:
    """Kept ids of the scored positions, and how many each has (0 = nothing was cut off)."""
    if row.kept is None:
        return torch.zeros(0, dtype=torch.long), torch.zeros(int(scored_l.sum()), dtype=torch.long)
    parts = row.kept.ids.split(row.kept.counts.tolist())
    wanted = scored_l.nonzero()[:, 0].tolist()
    chosen = [parts[i] for i in wanted]
    counts = row.kept.counts[scored_l]
    return torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.long), counts
