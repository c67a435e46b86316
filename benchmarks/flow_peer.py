"""The flow_grpo repository (github.com/yifan123/flow_grpo) on the same transformer: FLOW_GRPO=DIR names a checkout.

It is no package and cannot be installed: its step function, its sampling pipeline and `compute_log_prob` of its
training script are read from the checkout and run as they are. The few lines of its loss stand inside its `main` and
are written again here.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import flow_case, harness
from benchmarks.harness import Side

VARIABLE = "FLOW_GRPO"
SCRIPT = "scripts/train_sd3.py"
PATCH = "flow_grpo/diffusers_patch/sd3_sde_with_logprob.py"
#: Latents whose step is timed: of the tiny pipeline, and of SD3.5 at 512 x 512 pixels.
LATENTS = {"4 x 32 x 32": (4, 32, 32), "16 x 64 x 64": (16, 64, 64)}
EMBEDS, POOLED = "encoder_hidden_states", "pooled_projections"
CALLS = 10  # in one measured run of the step formula


def checkout() -> Path | None:
    """The folder that the variable names. A folder without its files is an error, no checkout is none."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    root = Path(named).expanduser().resolve()
    for file in (PATCH, SCRIPT):
        if not (root / file).is_file():
            raise SystemExit(f"{VARIABLE}={named}: no {file} there; name a checkout of github.com/yifan123/flow_grpo")
    return root


def commit() -> str:
    root = checkout()
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip()[:12] if found.returncode == 0 else "unknown commit"


def _patch(name: str) -> Any:
    import importlib

    root = str(checkout())
    if root not in sys.path:
        sys.path.append(root)
    return importlib.import_module(f"flow_grpo.diffusers_patch.{name}")


def _step() -> Any:
    return _patch("sd3_sde_with_logprob").sde_step_with_logprob


def _log_prob() -> Any:
    """`compute_log_prob` of its script, alone: the script itself imports loggers and launchers."""
    import torch

    root = checkout()
    assert root is not None
    tree = ast.parse((root / SCRIPT).read_text(encoding="utf-8"))
    wanted = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "compute_log_prob"]
    if len(wanted) != 1:
        raise RuntimeError(f"{SCRIPT}: {len(wanted)} functions compute_log_prob")
    space = {"torch": torch, "sde_step_with_logprob": _step()}
    exec(compile(ast.Module(wanted, []), str(root / SCRIPT), "exec"), space)
    return space["compute_log_prob"]


class Peer:
    """Its side on a policy of ours: the same transformer, pipeline, embeddings and rollouts."""

    def __init__(self, made: Any, update: flow_case.Update) -> None:
        import torch

        self.made, self.update, self.log_prob = made, update, _log_prob()
        w = made.sampling.guidance
        self.pipe = made.model.pipe
        self.pipe.scheduler.set_timesteps(made.sampling.steps)
        self.config = SimpleNamespace(
            train=SimpleNamespace(cfg=w != 1, adv_clip_max=5.0, clip_range=flow_case.CLIP),
            sample=SimpleNamespace(guidance_scale=w, noise_level=flow_case.NOISE),
        )
        rows = update.rollouts.rows
        told = made.model.collate(made.conditions([row.prompt for row in rows]))
        self.told = {"prompt_embeds": told[EMBEDS], "pooled_prompt_embeds": told[POOLED]}
        self.embeds, self.pooled = told[EMBEDS], told[POOLED]
        if w != 1:
            nothing = made.model.collate(made.conditions([""] * len(rows)))
            self.told |= {"negative_prompt_embeds": nothing[EMBEDS], "negative_pooled_prompt_embeds": nothing[POOLED]}
            self.embeds, self.pooled = (torch.cat([nothing[name], told[name]]) for name in (EMBEDS, POOLED))
        self.steps = update.rollouts.tables[flow_case.CHANNEL]["mask_nt"][0].nonzero()[:, 0].tolist()
        states = torch.stack([torch.stack([row.states[s] for s in range(len(self.steps) + 1)]) for row in rows])
        self.sample = {
            "latents": states[:, :-1],
            "next_latents": states[:, 1:],
            "timesteps": self.pipe.scheduler.timesteps.repeat(len(rows), 1),
            "log_probs": update.rollouts.tables[flow_case.CHANNEL]["sampler_logp_nt"],
            "advantages": update.table()["adv_nt"].float(),
        }

    def log_probs(self, j: int) -> Any:
        return self.log_prob(
            self.made.model.transformer, self.pipe, self.sample, j, self.embeds, self.pooled, self.config
        )[1]

    def gradients(self) -> float:
        """Its loop over the steps: a backward each, the mean over them by gradient accumulation."""
        import torch

        for p in self.update.parameters:
            p.grad = None
        total, limit = 0.0, self.config.train.clip_range
        for j in self.steps:
            log_prob, before = self.log_probs(j), self.sample["log_probs"][:, j]
            most = self.config.train.adv_clip_max
            advantages = torch.clamp(self.sample["advantages"][:, j], -most, most)
            ratio = torch.exp(log_prob - before)
            clipped = torch.clamp(ratio, 1.0 - limit, 1.0 + limit)
            loss = torch.mean(torch.maximum(-advantages * ratio, -advantages * clipped)) / len(self.steps)
            0.5 * torch.mean((log_prob - before) ** 2), torch.mean((torch.abs(ratio - 1.0) > limit).float())  # its log
            loss.backward()
            total += float(loss.detach())
        return total

    def __call__(self) -> None:
        self.gradients()
        self.update.finish()

    def rollout(self) -> Any:
        """Its sampling pipeline from our first noise; (pictures, states, log-probabilities)."""
        self.pipe.set_progress_bar_config(disable=True)
        size = {"height": self.made.inputs.height, "width": self.made.inputs.width}
        return _patch("sd3_pipeline_with_logprob").pipeline_with_logprob(
            self.pipe,
            latents=self.sample["latents"][:, 0],
            num_inference_steps=self.made.sampling.steps,
            guidance_scale=self.made.sampling.guidance,
            noise_level=flow_case.NOISE,
            output_type="pt",
            **size,
            **self.told,
        )


def _prepared(folder: str, guidance: float, rows: int) -> tuple[Any, flow_case.Update, Peer]:
    made = flow_case.policy(folder, guidance=guidance, rows=rows, detach_uncond=True)  # its code detaches that half
    update = flow_case.Update(made, flow_case.roll(made, rows))
    return made, update, Peer(made, update)


# ---- sides


def updates(folder: str, guidance: float, rows: int) -> Callable[[Any], None]:
    """Both updates, both rollouts, and the pass for old log-probabilities that mmrl's trainer can make beside them when
    a rollout serves several updates (flow_grpo takes those of the sampler)."""
    from mmrl.training.update import evaluate

    made, update, peer = _prepared(folder, guidance, rows)
    together = flow_case.policy(folder, guidance=guidance, rows=rows)  # samples both halves in one forward
    works = {
        "mmrl": update,
        "flow_grpo": peer,
        "old pass": lambda: evaluate(made, update.rollouts, {"logp_nt"}, channel=flow_case.CHANNEL),
        "rollout mmrl": lambda: flow_case.roll(together, rows),
        "rollout flow_grpo": peer.rollout,
    }
    return flow_case.taking_turns(works)


def steps(folder: str, latent: list[int], rows: int) -> Callable[[Any], None]:
    """The step formula alone: drawing a step with its log-probability, and scoring one with a gradient."""
    import torch

    from image_gen.flow.steps import draw, log_prob, transition

    made, theirs = flow_case.policy(folder, rows=rows), _step()
    scheduler = made.model.pipe.scheduler  # type: ignore[attr-defined]
    scheduler.set_timesteps(made.sampling.steps)
    sigma, rule, at = made.sigma_s.tolist(), made.rule, made.sampling.steps // 2
    x, v, after = (torch.randn(rows, *latent, generator=torch.Generator().manual_seed(i)) for i in range(3))
    v.requires_grad_()
    time = scheduler.timesteps[at].expand(rows)
    generators = [torch.Generator().manual_seed(i) for i in range(rows)]
    level = {"sigma": sigma[at], "sigma_next": sigma[at + 1]}

    def ours_drawn() -> None:
        with torch.no_grad():
            for _ in range(CALLS):
                step = transition(rule=rule, x_n=x, v_n=v, **level)
                log_prob(step=step, x_next_n=draw(step=step, generators=generators))

    def theirs_drawn() -> None:
        with torch.no_grad():
            for _ in range(CALLS):  # one timestep for all rows, as its sampling pipeline calls it
                theirs(scheduler, v, time[:1], x, noise_level=flow_case.NOISE)

    def ours_scored() -> None:
        for _ in range(CALLS):
            step = transition(rule=rule, x_n=x, v_n=v, **level)
            torch.autograd.grad(log_prob(step=step, x_next_n=after).sum(), v)

    def theirs_scored() -> None:
        for _ in range(CALLS):
            found = theirs(scheduler, v, time, x, prev_sample=after, noise_level=flow_case.NOISE)
            torch.autograd.grad(found[1].sum(), v)

    names = ("draw mmrl", "draw flow_grpo", "score mmrl", "score flow_grpo")
    return flow_case.taking_turns(dict(zip(names, (ours_drawn, theirs_drawn, ours_scored, theirs_scored))))


def compare(folder: str, guidance: float, rows: int) -> dict[str, float]:
    """Differences on equal rollouts, the weights moved a little since: next states and log-probabilities (absolute),
    loss and gradient (relative to its norm), and the share of decisions outside of the clip."""
    import torch

    from image_gen.flow.steps import draw, transition
    from mmrl.training.update import evaluate

    made, update, peer = _prepared(folder, guidance, rows)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in update.parameters:
            p += 1e-3 * torch.randn_like(p)
    tables, gaps, states = update.rollouts.tables[flow_case.CHANNEL], [], []
    found = evaluate(made, update.rollouts, {"logp_nt"}, channel=flow_case.CHANNEL)["logp_nt"]
    sigma = made.sigma_s.tolist()
    for j in peer.steps:
        with torch.no_grad():
            gaps.append((found[:, j] - peer.log_probs(j)).abs().max())
        x, v = peer.sample["latents"][:, j], torch.randn(peer.sample["latents"][:, j].shape)
        seeds = [[torch.Generator().manual_seed(i) for i in range(rows)] for _ in range(2)]
        step = transition(rule=made.rule, x_n=x, v_n=v, sigma=sigma[j], sigma_next=sigma[j + 1])
        time = peer.sample["timesteps"][:, j]
        theirs = _step()(peer.pipe.scheduler, v, time, x, noise_level=flow_case.NOISE, generator=seeds[1])
        states.append((draw(step=step, generators=seeds[0]) - theirs[0]).abs().max())
    losses, slopes = [], []
    for side in (update, peer):
        losses.append(side.gradients())
        slopes.append(torch.cat([p.grad.flatten().clone() for p in update.parameters]))
    mask = tables["mask_nt"]
    outside = ((found - tables["sampler_logp_nt"])[mask].exp() - 1).abs() > flow_case.CLIP
    return {
        "state": float(max(states)),
        "log-prob": float(max(gaps)),
        "loss": abs(losses[0] - losses[1]),
        "gradient": float((slopes[0] - slopes[1]).norm() / slopes[1].norm()),
        "outside": float(outside.float().mean()),
    }


# ---- the parent


def measure(shared: dict[str, Any], guidances: tuple[float, ...]) -> dict[str, Any]:
    """shared: the folder and the rows."""
    found: dict[str, Any] = {"commit": commit(), "gaps": {}, "updates": {}, "steps": {}}
    for guidance in guidances:
        gaps = harness.call("benchmarks.flow_peer:compare", **shared, guidance=guidance)
        print(f"  flow_grpo, guidance {guidance}: {gaps}", flush=True)
        if max(gaps[k] for k in ("state", "log-prob", "gradient")) > 1e-3:
            raise SystemExit(f"guidance {guidance}: mmrl and flow_grpo differ: {gaps}")
        found["gaps"][str(guidance)] = gaps
        side = Side("both", "benchmarks.flow_peer:updates", shared | {"guidance": guidance})
        found["updates"][str(guidance)] = harness.race([side], repeats=10, warmups=1)["both"]
    for name, latent in LATENTS.items():
        side = Side("both", "benchmarks.flow_peer:steps", shared | {"latent": latent})
        found["steps"][name] = harness.race([side], repeats=30, warmups=3)["both"]
    return found


def _pair(times: dict[str, Any], ours: str, theirs: str, calls: int = 1) -> list[str]:
    shown = [
        harness.show_seconds({k: times[name][k] / calls for k in ("median", "low", "high")}) for name in (ours, theirs)
    ]
    return shown + [flow_case.show(flow_case.paired(times[theirs], times[ours], key)) for key in ("all", "all_cpu")]


def page(result: dict[str, Any] | None) -> str:
    if result is None:
        return (
            f"flow_grpo: peer absent. `{VARIABLE}=DIR make bench ONLY=flow` with a checkout of "
            "github.com/yifan123/flow_grpo in DIR times its step formula and its update here."
        )
    gaps = result["gaps"].values()
    worst = {k: max(g[k] for g in gaps) for k in ("state", "log-prob", "loss", "gradient", "outside")}
    rows = []
    for g, times in result["updates"].items():
        rows.append([f"update, guidance {float(g):g}", *_pair(times, "mmrl", "flow_grpo")])
        rows.append([f"rollout, guidance {float(g):g}", *_pair(times, "rollout mmrl", "rollout flow_grpo")])
    for name, times in result["steps"].items():
        for what in ("draw", "score"):
            rows.append([f"{what} a step, {name}", *_pair(times, f"{what} mmrl", f"{what} flow_grpo", CALLS)])
    passes = ", ".join(
        f"{harness.show_seconds(t['old pass'])} at guidance {float(g):g}" for g, t in result["updates"].items()
    )
    return f"""Beside flow_grpo ({result["commit"]}), on the same transformer, rollouts and advantages. Largest
differences with weights moved since the rollout ({100 * worst["outside"]:.0f} % of the decisions outside of the clip):
next state {worst["state"]:.0e}, log-probability {worst["log-prob"]:.0e}, loss {worst["loss"]:.0e},
gradient {worst["gradient"]:.0e} of its norm.

{harness.table(["what", "mmrl", "flow_grpo", "flow_grpo / mmrl", "CPU seconds"], rows)}

The update is that of the table above, for both with `detach_uncond`, as flow_grpo has it: it runs both halves of the
guidance with a graph and detaches one, mmrl runs that half without a graph. The rollout is without `detach_uncond`;
with it mmrl samples the halves one after the other too. Drawing takes one generator a row in mmrl, so that a picture
does not depend on its batch, and one for the whole batch in flow_grpo. Where a rollout serves several updates
(`minibatches`) both take the sampler's log-probabilities as the old ones; with
`train.old_pass: always`, and in half precision, mmrl makes a pass beside them: {passes}."""


def headline(result: dict[str, Any] | None, size: str) -> list[list[str]]:
    names = ("step formula, flow_grpo / mmrl", "flow update, flow_grpo / mmrl")
    if result is None:
        return [[name, "tiny SD3", "peer absent", "-"] for name in names]
    found = []
    for name, times in result["steps"].items():
        for what in ("draw", "score"):
            ratio = flow_case.paired(times[f"{what} flow_grpo"], times[f"{what} mmrl"])
            found.append([f"{names[0]}, {what}", f"16 latents of {name}", flow_case.show(ratio), "-"])
    for g, times in result["updates"].items():
        ratio = flow_case.paired(times["flow_grpo"], times["mmrl"])
        found.append([names[1], f"{size}, guidance {float(g):g}", flow_case.show(ratio), "-"])
    return found
