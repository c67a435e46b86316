"""The flow-matching image policy: `mmrl.training.policy.Policy` over any `ImageModel`. A decision is a denoising step.

Axes: N images, S denoising steps (all of them are columns; the mask marks the stochastic, trained ones), n images of a
piece.
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
from image_gen.flow import windows
from image_gen.flow.config import Inputs, Model, Sampling
from image_gen.flow.demonstrations import Picture, noised, squared_error
from image_gen.flow.divergence import gaussian_kl
from image_gen.flow.sampler import Denoised, Trajectory, Velocity, denoise, scored_steps
from image_gen.flow.steps import Rule, Transition, guided_velocity, log_prob, make_rule, row_mean, transition
from image_gen.pipelines.base import ImageModel
from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError
from mmrl.training import precision, weights
from mmrl.training.policy import Bundle, Needs, Piece, Policy, Scope
from mmrl.training.reference import Reference
from mmrl.training.rollouts import Request, Rollouts, row_keys

CHANNEL = "steps"


class FlowPolicy(Policy):
    """A loaded pipeline whose transformer is trained; it is on its device already.

    without_adapter   a context in which a fresh adapter is off, so that it gives the reference; None otherwise.
    base              the model below an adapter, which a stored adapter names; default the model of the options.
    """

    unit = "element-mean"
    channels = (CHANNEL,)
    provides = frozenset({"logp_nt", "kl_nt", "mean_gap_nt", "supervised_nt", "dt_nt", "sigma_nt", "scored_nt"})
    keys = frozenset({"prompt", "record", "task"})
    dense = True
    gallery_rows = 4

    def __init__(
        self,
        model: ImageModel,
        *,
        options: Model,
        sampling: Sampling,
        inputs: Inputs,
        without_adapter: Callable[[], AbstractContextManager[object]] | None = None,
        base: str | None = None,
    ) -> None:
        self.base = base or options.base or options.path
        self.model, self.options, self.sampling, self.inputs = model, options, sampling, inputs
        model.check_size(inputs.height, inputs.width)
        self.conditions = Conditions(model, limit=inputs.cached_prompts)
        self.sigma_s = model.sigmas(sampling.steps, inputs.height, inputs.width)
        self.rule: Rule = make_rule(name=sampling.rule, noise=sampling.noise, sigmas=self.sigma_s)
        windows.check(
            rule=sampling.rule, steps=sampling.steps, name=sampling.window.name, options=sampling.window.options
        )
        if options.detach_uncond and (model.guidance == "embedded" or sampling.guidance == 1):
            raise UserError(
                "model.detach_uncond: there is no unconditional half here; remove it, or set sampling.guidance"
            )
        self._reference = Reference(model.transformer, without_adapter=without_adapter)
        self._project = self._keep_means = False

    @property
    def device(self) -> torch.device:
        return next(self.model.transformer.parameters()).device

    @property
    def sampler_exact(self) -> bool:  # type: ignore[override]
        """In float32. In half precision other batch shapes give other likelihoods, by more than these tiny clips."""
        return not self._half

    def meet(self, records: Sequence[Record]) -> list[str]:
        return self.conditions.meet([prompt_of(r) for r in records], unconditional=self._two_halves)

    def expect(self, channels: frozenset[str]) -> None:
        self._project = "reward_ntk" in channels
        self._keep_means = "mean_gap_nt" in channels
        if self.sampling.score_every > 1 and not self._project:
            raise UserError(
                "sampling.score_every: only recipes with rewards per step (vgpo) score projections; remove it"
            )
        if self._keep_means and self.sampling.rule == "cps":
            raise UserError(
                "sampling.rule: GRPO-Guard corrects a Gaussian log-probability, and cps drops its factor; use sde or "
                "dance"
            )

    # sampling

    def rollout(self, requests: Sequence[Request], streams: Streams, *, greedy: bool = False) -> Rollouts:
        """`greedy`: the noiseless sampler with eval_steps and eval_guidance; still one picture per initial noise."""
        for request in requests:
            if request.sampling:
                raise UserError(f"sampling override: image models have none, got {', '.join(request.sampling)}")
        jobs = [(r, sample) for r in requests for sample in range(r.first_sample, r.first_sample + r.n)]
        window = None if greedy else self._window(streams.step, streams.seed)
        found: list[_Sampled] = []
        for start in range(0, len(jobs), self.sampling.batch_rows):
            found.append(self._sample(jobs[start : start + self.sampling.batch_rows], streams, window))
        return self._assemble(requests, jobs, found, window, streams)

    def _sample(self, jobs: list[tuple[Request, int]], streams: Streams, window: windows.Window | None) -> _Sampled:
        size = (self.inputs.height, self.inputs.width)
        generators = [streams.generator(request.record.id, sample) for request, sample in jobs]
        first = generators
        if self.sampling.same_noise and window is not None:
            first = [streams.generator(request.record.id, 0, use="first-noise") for request, _ in jobs]
        shape = self.model.latent_shape(*size)
        x_n = torch.stack([torch.randn(shape, generator=g) for g in first]).to(self.device)
        rows = [Trajectory(prompt_of(request.record, request.prompt_edit)) for request, _ in jobs]
        greedy, steps = window is None, self.sampling.eval_steps
        with torch.no_grad():
            done = denoise(
                x_n=x_n,
                velocity=self._velocity([row.prompt for row in rows], greedy=greedy),
                sigmas=self.model.sigmas(steps, *size) if greedy else self.sigma_s,
                rule=self.rule,
                window=window,
                generators=generators,
                rows=rows,
                keep_means=self._keep_means,
                project=self._scored(window),
            )
            pictures = {s: self._decode(x_n) for s, x_n in done.projections.items()}
            last = steps - 1 if greedy else self.sampling.steps - 1
            return _Sampled(rows, done, pictures.get(last) or self._decode(done.x_n), pictures)

    def _scored(self, window: windows.Window | None) -> tuple[int, ...]:
        if window is None or not self._project:
            return ()
        return scored_steps(window=window, every=self.sampling.score_every)

    def _decode(self, x_n: Tensor) -> list[Tensor]:
        """Pictures [3, H, W] in [0, 1], on the CPU."""
        found: list[Tensor] = []
        for part in x_n.split(self.sampling.decode_rows):
            pictures = self.model.decode(part, height=self.inputs.height, width=self.inputs.width)
            found += list(pictures.float().cpu().unbind(0))
        return found

    def _window(self, step: int, seed: int) -> windows.Window:
        own = self.sampling.window
        return windows.choose(name=own.name, steps=self.sampling.steps, step=step, seed=seed, options=own.options)

    def _assemble(
        self,
        requests: Sequence[Request],
        jobs: list[tuple[Request, int]],
        found: list[_Sampled],
        window: windows.Window | None,
        streams: Streams,
    ) -> Rollouts:
        logp_ns = torch.cat([part.done.logp_ns for part in found])
        n, steps = logp_ns.shape
        good = torch.cat([part.done.x_n.flatten(1).isfinite().all(1).cpu() for part in found])
        info: list[dict[str, Any]] = []
        for i, (_, sample) in enumerate(jobs):
            info.append({"length": len(window.trained) if window else steps, "finished": True, "sample": sample})
            if not good[i]:
                info[i]["unusable"] = f"its latents are not finite (seed {streams.seed}, step {streams.step + 1})"
        tables = {"mask_nt": torch.zeros(n, steps, dtype=torch.bool), "sampler_logp_nt": logp_ns}
        if window is not None:
            tables["mask_nt"] = window.mask().expand(n, steps) & good[:, None]
            tables |= self._schedule(n, self._scored(window))
        pictures = [picture for part in found for picture in part.pictures]
        return Rollouts(
            rows=[row for part in found for row in part.rows],
            records=[request.record for request, _ in jobs],
            outputs=pictures,
            info=info,
            keys=row_keys(requests),
            tables={CHANNEL: tables},
            segments={CHANNEL: {}},
            stats={"forwards": float(sum(part.done.forwards * len(part.rows) for part in found))},
            steps=self._by_step(found, steps) if window is not None and self._project else None,
        )

    def _schedule(self, n: int, scored: tuple[int, ...]) -> dict[str, Tensor]:
        """Step widths and diffusion coefficients of the rule, and which steps are scored: [N,S], alike in all rows."""
        level_s, after_s = self.sigma_s[:-1], self.sigma_s[1:]
        sigma_s = self.rule.coefficients(sigma=level_s, sigma_next=after_s).diffusion
        scored_s = torch.zeros(len(level_s), dtype=torch.bool)
        scored_s[list(scored)] = True
        one = {"dt_nt": after_s - level_s, "sigma_nt": sigma_s, "scored_nt": scored_s}
        return {name: value.expand(n, len(level_s)).clone() for name, value in one.items()}

    @staticmethod
    def _by_step(found: list[_Sampled], steps: int) -> list[list[Any]]:
        return [
            [part.by_step[s][i] if s in part.by_step else None for s in range(steps)]
            for part in found
            for i in range(len(part.rows))
        ]

    def demonstrations(self, records: Sequence[Record], streams: Streams) -> Rollouts:
        """Pictures to imitate (`images` of a record, its first one): one decision, the flow-matching loss at one level
        of noise, drawn anew for every step of training."""
        rows = [self._demonstration(record, streams) for record in records]
        requests = [Request(record, 1) for record in records]
        return Rollouts(
            rows=rows,
            records=list(records),
            outputs=["" for _ in records],
            info=[{"length": 1, "finished": True, "sample": 0} for _ in records],
            keys=row_keys(requests),
            tables={
                CHANNEL: {
                    "mask_nt": torch.ones(len(rows), 1, dtype=torch.bool),
                    "sampler_logp_nt": torch.full((len(rows), 1), float("nan")),
                }
            },
            segments={CHANNEL: {}},
        )

    def _demonstration(self, record: Record, streams: Streams) -> Picture:
        if not record.images:
            raise RecordError(record.id, "no picture to imitate; add `images`, or use another recipe than sft")
        generator = streams.generator(record.id, 0, use="demonstration")
        latent = self.model.from_picture(record.images[0], height=self.inputs.height, width=self.inputs.width)
        return noised(latent, prompt=prompt_of(record), generator=generator)

    # likelihood

    def bundles(self, rollouts: Rollouts, *, channel: str, update: int, scope: Scope) -> list[Bundle]:
        """A piece is one denoising step of up to `piece_rows` images, whatever the scope: a wider one takes two passes,
        so that the graph of a whole trajectory never lives."""
        mask_ns = rollouts.tables[CHANNEL]["mask_nt"].bool()
        imitates = bool(rollouts.rows) and isinstance(rollouts.rows[0], Picture)
        pieces = []
        for s in mask_ns.any(0).nonzero()[:, 0].tolist():
            for rows in mask_ns[:, s].nonzero()[:, 0].split(self.options.piece_rows):
                columns = None if imitates else torch.tensor([s])
                pieces.append(Piece(rows, columns, [rollouts.rows[i] for i in rows.tolist()]))
        return [Bundle([piece]) for piece in pieces]

    def evaluate(self, piece: Piece, shared: Any, needs: Needs) -> dict[str, Tensor]:
        if piece.columns is None:
            return {"supervised_nt": squared_error(piece.data, self._plain_velocity(piece.data), self.device)[:, None]}
        s, rows = int(piece.columns[0]), piece.data
        x_n, after_n = (torch.stack([row.states[at] for row in rows]).to(self.device) for at in (s, s + 1))
        velocity = self._velocity([row.prompt for row in rows], greedy=False)
        ref_mean_n = None
        if "kl_nt" in needs.channels:  # before the pass with gradient: the reference may swap the weights
            with torch.no_grad(), self._reference.active():
                ref_mean_n = self._step(x_n, velocity, s).mean_n
        step = self._step(x_n, velocity, s)
        out: dict[str, Tensor] = {}
        if "logp_nt" in needs.channels:
            out["logp_nt"] = log_prob(step=step, x_next_n=after_n)
        if ref_mean_n is not None:
            out["kl_nt"] = gaussian_kl(step=step, ref_mean_n=ref_mean_n, kl_form=self.options.kl_form)
        if "mean_gap_nt" in needs.channels:
            old_n = torch.stack([row.means[s] for row in rows]).to(self.device)
            out["mean_gap_nt"] = row_mean((step.mean_n - old_n).square())
        return {name: value[:, None] for name, value in out.items()}

    def _step(self, x_n: Tensor, velocity: Velocity, s: int) -> Transition:
        level, after = float(self.sigma_s[s]), float(self.sigma_s[s + 1])
        return transition(rule=self.rule, x_n=x_n, v_n=velocity(x_n, level), sigma=level, sigma_next=after)

    # the guided velocity: one place for sampling and for scoring

    def _guidance(self, greedy: bool) -> float:
        own = self.sampling.eval_guidance
        return self.sampling.guidance if not greedy or own is None else own

    @property
    def _two_halves(self) -> bool:
        """Some sampler mixes a conditional and an unconditional velocity."""
        return self.model.guidance == "classifier_free" and {self._guidance(True), self._guidance(False)} != {1.0}

    def _velocity(self, prompts: Sequence[str], *, greedy: bool) -> Velocity:
        """(states, sigma) -> velocity with guidance; v = v_u + w (v_c - v_u) with the same w in rollout and update."""
        scale, n = self._guidance(greedy), len(prompts)
        told = self.conditions(prompts)
        if self.model.guidance == "embedded" or scale == 1:
            batch = self.model.collate(told)
            embedded = scale if self.model.guidance == "embedded" else None
            return lambda x_n, sigma: self._forward(x_n, sigma, batch, embedded)
        nothing = self.conditions([""]) * n
        if not self.options.detach_uncond:
            both = self.model.collate([*nothing, *told])

            def together(x_n: Tensor, sigma: float | Tensor) -> Tensor:
                twice = sigma.repeat(2) if isinstance(sigma, Tensor) else sigma
                v_u, v_c = self._forward(torch.cat([x_n, x_n]), twice, both, None).chunk(2)
                return guided_velocity(v_cond=v_c, v_uncond=v_u, guidance=scale)

            return together
        half_u, half_c = self.model.collate(nothing), self.model.collate(told)

        def apart(x_n: Tensor, sigma: float | Tensor) -> Tensor:
            with torch.no_grad():
                v_u = self._forward(x_n, sigma, half_u, None)
            return guided_velocity(v_cond=self._forward(x_n, sigma, half_c, None), v_uncond=v_u, guidance=scale)

        return apart

    def _plain_velocity(self, pictures: list[Picture]) -> Velocity:
        """For imitation: the conditional half alone."""
        batch = self.model.collate(self.conditions([p.prompt for p in pictures]))
        return lambda x_n, sigma: self._forward(x_n, sigma, batch, 1.0 if self.model.guidance == "embedded" else None)

    def _forward(self, x_n: Tensor, sigma: float | Tensor, batch: dict[str, Tensor], scale: float | None) -> Tensor:
        with self._autocast():
            return self.model.velocity(
                x_n, sigma, batch, height=self.inputs.height, width=self.inputs.width, scale=scale
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
        self._reference.keep()

    def parameters_of(self, channel: str) -> list[torch.nn.Parameter]:
        return list(weights.trainable(self.model.transformer).values())

    def state_dict(self) -> dict[str, Tensor]:
        return weights.trainable_state(self.model.transformer)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        weights.load_trainable(self.model.transformer, state)

    def save(self, path: Path) -> None:
        """A LoRA that plain diffusers takes by `load_lora_weights`, or the whole pipeline's folder."""
        stored.save(self.model, path, options=self.options, family="flow", base=self.base)

    # people

    def describe(self, rollouts: Rollouts, rows: Iterable[int]) -> list[dict[str, Any]]:
        from torchvision.transforms.functional import to_pil_image

        return [
            {"prompt": prompt_of(rollouts.records[i]), "output": "", "images": [to_pil_image(rollouts.outputs[i])]}
            for i in rows
        ]


class _Sampled:
    """One batch: payloads, latents, pictures, and pictures of projections by step."""

    def __init__(
        self, rows: list[Trajectory], done: Denoised, pictures: list[Tensor], by_step: dict[int, list[Tensor]]
    ) -> None:
        self.rows, self.done, self.pictures, self.by_step = rows, done, pictures, by_step
