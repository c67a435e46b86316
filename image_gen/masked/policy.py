"""The masked-image policy: `mmrl.training.policy.Policy` over any `TokenModel`, with its schedule.

Two channels share one advantage. `tokens` [N, L]: the log-probability of each position, at the step that filled it,
under the values that the schedule had chosen for that step. `schedule` [N, T-1]: the log-density of each raw action.

Axes: N images, L positions of a canvas, T decoding steps, V = 4 schedule variables, n images of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_gen import stored
from image_gen.conditions import Conditions, prompt_of
from image_gen.masked import decoding, pieces, steps
from image_gen.masked.config import Inputs, Model, Sampling
from image_gen.masked.models.base import TokenModel
from image_gen.masked.network import Prompted
from image_gen.masked.rows import Decoding, canvas_before
from image_gen.masked.schedule import actions, beside
from image_gen.masked.schedule.base import Schedule
from image_gen.masked.schedule.targets import mixing_guidance
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError
from mmrl.training import precision, weights
from mmrl.training.policy import Bundle, Needs, Piece, Policy, Scope
from mmrl.training.reference import Reference
from mmrl.training.rollouts import Request, Rollouts, row_keys

TOKENS, SCHEDULE = "tokens", "schedule"
#: How the schedule's tensors are told apart in a checkpoint.
_PREFIX = "schedule."


class MaskedPolicy(Policy):
    """A loaded token model whose transformer is trained, and a schedule policy; both are on their device already.

    without_adapter   a context in which a fresh adapter is off, so that it gives the reference; None otherwise.
    base              the model below an adapter, which a stored adapter names; default the model of the options.
    """

    unit = "decision"
    channels = (TOKENS, SCHEDULE)
    provides = frozenset({"logp_nt", "entropy_nt", "supervised_nt", "kl_nt"})
    keys = frozenset({"prompt", "record", "task"})
    segments = frozenset({"step"})
    densities = frozenset({SCHEDULE})
    gallery_rows = 4

    def __init__(
        self,
        model: TokenModel,
        schedule: Schedule,
        *,
        options: Model,
        sampling: Sampling,
        inputs: Inputs,
        without_adapter: Callable[[], AbstractContextManager[object]] | None = None,
        base: str | None = None,
    ) -> None:
        self.base = base or options.base or options.path
        self.model, self.schedule = model, schedule
        self.options, self.sampling, self.inputs = options, sampling, inputs
        self.size = (inputs.height, inputs.width)
        self.grid = model.grid(*self.size)
        self.conditions = Conditions(model, limit=inputs.cached_prompts)
        self._reference = Reference(model.transformer, without_adapter=without_adapter)

    @classmethod
    def offers(cls, channel: str) -> frozenset[str]:
        own = {"supervised_nt"} if channel == TOKENS else {"kl_nt"}
        return frozenset({"logp_nt", "entropy_nt", *own})

    @property
    def device(self) -> torch.device:
        return next(self.model.transformer.parameters()).device

    @property
    def sampler_exact(self) -> bool:  # type: ignore[override]
        """In float32. In half precision other batch shapes give other likelihoods."""
        return not self._half

    def meet(self, records: Sequence[Record]) -> list[str]:
        return self.conditions.meet([prompt_of(r) for r in records], unconditional=True)

    # sampling

    def rollout(self, requests: Sequence[Request], streams: Streams, *, greedy: bool = False) -> Rollouts:
        """`greedy`: the schedule by its mean and eval_steps; tokens are drawn either way, they are what varies.

        A request may ask for other `steps`, another `guidance`, or the `schedule` base (the hand-made one) in place of
        learned. Raises UserError for any other override.
        """
        jobs: list[decoding.Job] = []
        for request in requests:
            asked = decoding.asked(self.sampling, request.sampling, greedy=greedy)
            for sample in range(request.first_sample, request.first_sample + request.n):
                prompt = prompt_of(request.record, request.prompt_edit)
                jobs.append(decoding.Job(prompt, request.record.id, sample, asked))
        batches = decoding.batches(jobs, self.sampling.batch_rows)
        with torch.no_grad():
            found = [self._sample(batch, streams) for batch in batches]
            return self._assemble(requests, jobs, found, streams)

    def _sample(self, jobs: Sequence[decoding.Job], streams: Streams) -> decoding.Filled:
        network = self._network([job.prompt for job in jobs])
        filled = decoding.fill(
            jobs,
            network,
            self.schedule,
            self.model,
            positions=self.grid[0] * self.grid[1],
            sampling=self.sampling,
            generators=[streams.generator(job.record, job.sample) for job in jobs],
        )
        for part in filled.ids_nl.split(self.sampling.decode_rows):
            pictures = self.model.decode(part.to(self.device), height=self.size[0], width=self.size[1])
            filled.pictures += list(pictures.float().cpu().unbind(0))
        return filled

    def _assemble(
        self,
        requests: Sequence[Request],
        jobs: Sequence[decoding.Job],
        found: Sequence[decoding.Filled],
        streams: Streams,
    ) -> Rollouts:
        rows = [row for part in found for row in part.rows]
        good_n = torch.cat([part.finite_n for part in found])
        info: list[dict[str, Any]] = []
        for i, (job, row) in enumerate(zip(jobs, rows, strict=True)):
            trained = self.sampling.train_steps or row.n_steps
            info.append({"length": row.n_steps, "limit": trained, "finished": True, "sample": job.sample})
            if not good_n[i]:
                info[i]["unusable"] = f"its logits are not finite (seed {streams.seed}, step {streams.step + 1})"
        steps_nl = torch.stack([row.steps for row in rows])
        mask_nl = (steps_nl >= 0) & good_n[:, None]
        if self.sampling.train_steps is not None:
            generators = [streams.generator(job.record, job.sample, use="trained steps") for job in jobs]
            mask_nl &= decoding.some_steps(rows, self.sampling.train_steps, generators)
        tables = {TOKENS: {"mask_nt": mask_nl, "sampler_logp_nt": torch.cat([part.logp_nl for part in found])}}
        segments = {TOKENS: {"step": steps_nl.clamp(min=0)}}
        if all(job.asked.explore and job.asked.steps > 1 for job in jobs):
            logp_nt = torch.nn.utils.rnn.pad_sequence(
                [logp for part in found for logp in part.action_logp_nt], batch_first=True
            )
            length_n = torch.tensor([row.n_steps - 1 for row in rows])
            column_t = torch.arange(logp_nt.shape[1])
            mask_nt = (column_t < length_n[:, None]) & good_n[:, None]
            tables[SCHEDULE] = {"mask_nt": mask_nt, "sampler_logp_nt": logp_nt}
            segments[SCHEDULE] = {"step": column_t.expand_as(logp_nt).clone()}
        return Rollouts(
            rows=rows,
            records=[request.record for request in requests for _ in range(request.n)],
            outputs=[picture for part in found for picture in part.pictures],
            info=info,
            keys=row_keys(requests),
            tables=tables,
            segments=segments,
            stats={"forwards": float(sum(part.forwards * len(part.rows) for part in found))},
        )

    def demonstrations(self, records: Sequence[Record], streams: Streams) -> Rollouts:
        """Pictures to imitate (`images` of a record, its first one): masked as the base models were trained (Muse,
        arXiv 2301.00704), share cos(pi u / 2), u ~ U(0, 1), drawn anew for every step of training."""
        rows = [self._demonstration(record, streams) for record in records]
        steps_nl = torch.stack([row.steps for row in rows])
        table = {"mask_nt": steps_nl >= 0, "sampler_logp_nt": torch.full(steps_nl.shape, float("nan"))}
        return Rollouts(
            rows=rows,
            records=list(records),
            outputs=["" for _ in records],
            info=[{"length": 1, "limit": 1, "finished": True, "sample": 0} for _ in records],
            keys=row_keys([Request(record, 1) for record in records]),
            tables={TOKENS: table},
            segments={TOKENS: {"step": steps_nl.clamp(min=0)}},
        )

    def _demonstration(self, record: Record, streams: Streams) -> Decoding:
        if not record.images:
            raise RecordError(record.id, "no picture to imitate; add `images`, or use another recipe than sft")
        ids = self.model.tokenise(record.images[0], height=self.size[0], width=self.size[1])
        generator = streams.generator(record.id, 0, use="demonstration")
        return decoding.masked(ids, prompt=prompt_of(record), generator=generator, dropped=self.inputs.dropped_prompts)

    # likelihood

    def bundles(self, rollouts: Rollouts, *, channel: str, update: int, scope: Scope) -> list[Bundle]:
        """One decoding step of a few rows a piece, whatever the scope: a wider one takes two passes."""
        if not len(rollouts):
            return []
        if channel == TOKENS:
            return pieces.token_bundles(
                rollouts.rows, rollouts.tables[TOKENS]["mask_nt"], piece_rows=self.options.piece_rows
            )
        if SCHEDULE not in rollouts.tables:
            raise UserError(
                "channel schedule: nothing to train, no action was drawn; set sampling.explore, and sampling.steps to "
                "2 or more"
            )
        return pieces.action_bundles(
            rollouts.rows,
            rollouts.tables[SCHEDULE]["mask_nt"],
            piece_rows=self.options.piece_rows,
            one_by_one=self.schedule.reads_features,
        )

    def evaluate(self, piece: Piece, shared: Any, needs: Needs) -> dict[str, Tensor]:
        if needs.reducers:
            raise UserError(
                f"family masked has no logit reducers: {', '.join(sorted(needs.reducers))}; choose another recipe"
            )
        if isinstance(piece.data, pieces.Actions):
            return self._actions(piece.data, needs)
        assert piece.own is not None
        return self._tokens(piece.data, piece.own, needs)

    def _tokens(self, data: pieces.Round, own_nl: Tensor, needs: Needs) -> dict[str, Tensor]:
        """Of the positions that the step filled; 0 elsewhere. [n, L]"""
        rows, where_nl = data.rows, own_nl.to(self.device)
        value_nv = torch.stack([row.value[data.step] for row in rows]).to(self.device)
        guidance_n, temperature_n = value_nv[:, 3], value_nv[:, 2]
        network = self._network([row.prompt for row in rows])
        canvas_nl = canvas_before(rows, data.step, self.model.mask_id).to(self.device)
        halves = network(canvas_nl, both=bool((guidance_n != 1).any()), features=False)
        row_m, column_m = where_nl.nonzero(as_tuple=True)
        uncond_nlk = halves.uncond_nlk
        uncond_mk = None if uncond_nlk is None else uncond_nlk[row_m, column_m]
        logits_mk = steps.guided_logits(halves.cond_nlk[row_m, column_m], uncond_mk, guidance_n[row_m])
        logp_mk = steps.token_log_probs(logits_mk, temperature_n[row_m])
        ids_m = torch.stack([row.ids for row in rows]).to(self.device)[row_m, column_m]
        logp_m = steps.picked(logp_mk, ids_m)
        found = {"logp_nt": logp_m, "supervised_nt": -logp_m}
        if "entropy_nt" in needs.channels:
            found["entropy_nt"] = -(logp_mk.exp() * logp_mk.clamp(min=-1e4)).sum(1)
        return {
            name: value.new_zeros(where_nl.shape).index_put((row_m, column_m), value)
            for name, value in found.items()
            if name in needs.channels
        }

    def _actions(self, data: pieces.Actions, needs: Needs) -> dict[str, Tensor]:
        """Of raw actions, [n, number of steps]."""
        found: dict[str, list[Tensor]] = {name: [] for name in needs.channels}
        deviation_nv = first_nv = torch.stack([row.deviation for row in data.rows]).to(self.device)
        if self.schedule.learns_deviation:
            deviation_nv = self.schedule.deviation().expand_as(deviation_nv)
            first_nv = self.schedule.first_deviation().expand_as(deviation_nv)
        learned_v = self.schedule.learned_v
        for step in data.steps:
            mean_nv = self._mean(data.rows, step)
            raw_nv = torch.stack([row.raw[step] for row in data.rows]).to(mean_nv)
            if "logp_nt" in found:
                logp_n = actions.log_prob(raw_nv=raw_nv, mean_nv=mean_nv, deviation_v=deviation_nv, learned_v=learned_v)
                found["logp_nt"].append(logp_n)
            if "kl_nt" in found:
                kl_n = actions.gaussian_kl(
                    mean_nv=mean_nv, deviation_v=deviation_nv, first_deviation_v=first_nv, learned_v=learned_v
                )
                found["kl_nt"].append(kl_n)
            if "entropy_nt" in found:
                found["entropy_nt"].append(actions.entropy(deviation_v=deviation_nv, learned_v=learned_v))
        return {name: torch.stack(values, 1) for name, values in found.items()}

    def _mean(self, rows: Sequence[Decoding], step: int) -> Tensor:
        features = None
        if self.schedule.reads_features:
            canvas_nl = canvas_before(rows, step, self.model.mask_id).to(self.device)
            with torch.no_grad():  # features are detached: the token model is not trained through them
                network = self._network([row.prompt for row in rows])
                features = network(canvas_nl, both=False, features=True).features_nld
        return self.schedule.mean(step=step, steps=rows[0].n_steps, n=len(rows), features_nld=features)

    def _network(self, prompts: Sequence[str]) -> Prompted:
        return Prompted(
            self.model,
            self.conditions,
            prompts,
            size=self.size,
            autocast=self._autocast,
            detach_uncond=self.options.detach_uncond,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        return precision.autocast(self.options.autocast, self.device)

    @property
    def _half(self) -> bool:
        return precision.is_half(self.options.autocast, self.device)

    # weights

    def reference(self) -> AbstractContextManager[None]:
        return self._reference.active()

    def keep_reference(self, channel: str) -> None:
        """The schedule's reference is the hand-made one, which needs no copy."""
        if channel == TOKENS:
            self._reference.keep()

    def stepped(self, channel: str) -> None:
        if channel == SCHEDULE:
            self.schedule.stepped()

    def parameters_of(self, channel: str) -> list[torch.nn.Parameter]:
        if channel == SCHEDULE:
            return list(weights.trainable(self.schedule).values())
        return list(weights.trainable(self.model.transformer).values())

    def state_dict(self) -> dict[str, Tensor]:
        """Trainable tensors of the transformer, and all of the schedule (its count of updates among them)."""
        own = {_PREFIX + name: value.detach().cpu().clone() for name, value in self.schedule.state_dict().items()}
        return weights.trainable_state(self.model.transformer) | own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        own = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
        mine = self.schedule.state_dict()
        if own.keys() != mine.keys() or any(own[name].shape != mine[name].shape for name in own):
            raise UserError("checkpoint: its schedule is another one than model.schedule; resume with its own config")
        weights.load_trainable(self.model.transformer, {n: v for n, v in state.items() if not n.startswith(_PREFIX)})
        self.schedule.load_state_dict(own)

    def save(self, path: Path) -> None:
        """The model's folder, or a LoRA alone, with `schedule/` beside it."""
        stored.save(self.model, path, options=self.options, family="masked", base=self.base)
        self.schedule.save(path / beside.FOLDER)

    # people

    def describe(self, rollouts: Rollouts, rows: Iterable[int]) -> list[dict[str, Any]]:
        """Prompt, picture, and how the canvas was filled."""
        from torchvision.transforms.functional import to_pil_image

        from image_gen.masked.drawing import filling

        found = []
        for i in rows:
            row, picture = rollouts.rows[i], rollouts.outputs[i]
            strip = filling(picture, steps_l=row.steps, grid=self.grid, n_steps=row.n_steps)
            told = {"prompt": row.prompt, "output": "", "images": [to_pil_image(picture)], "filling": strip}
            found.append(told)
        return found

    def profiles(self, rollouts: Rollouts) -> dict[str, dict[str, list[float]]]:
        """The schedule's values over the steps, beside those of the hand-made one."""
        from image_gen.masked.drawing import profiles

        base = decoding.hand_made(self.model, self.sampling, self.schedule, rollouts.rows[0].n_steps)
        value_tv = base.base_tv
        if self.schedule.options.base == "adanat":
            value_tv = mixing_guidance(value_tv)
        return profiles(rollouts.rows, base_tv=value_tv)
