"""What the benchmarks of image models share: a tiny random SD3 pipeline, the flow policy on it, a prepared update.

The pipeline is that of `image_gen.pipelines.tiny` (two blocks of width 32, 333 text tokens): real diffusers classes
with random weights. Pictures of 64 x 64 pixels are latents of 4 x 32 x 32, 256 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import harness

if TYPE_CHECKING:
    from torch import Tensor

    from image_gen.flow.policy import FlowPolicy
    from mmrl.core.objective import Objective
    from mmrl.core.table import Table
    from mmrl.training.rollouts import Rollouts

PIXELS, STEPS, NOISE = 64, 10, 0.7
PROMPTS = ("two owls on a red chair", "a small boat under three clouds")
RECIPE, CHANNEL, CLIP = "flow-grpo", "steps", 1e-4


def build(folder: str) -> dict[str, int]:
    """The pipeline's folder; how many numbers its transformer has."""
    from image_gen.pipelines import tiny
    from image_gen.pipelines.quiet import quiet

    with quiet():
        tiny.write("StableDiffusion3Pipeline", Path(folder))
    made = policy(folder)
    return {"parameters": sum(p.numel() for p in made.model.transformer.parameters())}


def policy(
    folder: str,
    *,
    guidance: float = 1.0,
    pixels: int = PIXELS,
    steps: int = STEPS,
    rows: int = 16,
    first: int | None = None,
    detach_uncond: bool = False,
) -> FlowPolicy:
    """All weights of the transformer train. first: only so many steps are stochastic and trained; None: all but the
    last. The prompts are encoded and the text encoders are gone."""
    from image_gen.flow import stages  # noqa: F401  (registers the stages of this family)
    from image_gen.flow.config import Inputs, Model, Sampling
    from image_gen.flow.family import load

    window: dict[str, Any] = {"name": "all"} if first is None else {"name": "first", "options": {"n": first}}
    options = {"path": folder, "adapter": {"kind": "none"}, "piece_rows": rows, "detach_uncond": detach_uncond}
    sampling = {"steps": steps, "noise": NOISE, "guidance": guidance, "window": window, "batch_rows": rows}
    made = load(
        Model.model_validate(options),
        Sampling.model_validate(sampling),
        Inputs(height=pixels, width=pixels),
        device="cpu",
    )
    told = made.meet(records())
    if told:
        raise RuntimeError(f"prompts of the benchmark: {told}")
    return made


def records() -> list[Any]:
    from mmrl.data.records import Record

    return [Record(f"b{i}", "image", prompt) for i, prompt in enumerate(PROMPTS)]


def roll(made: FlowPolicy, rows: int = 16) -> Rollouts:
    """`rows` pictures, half of them of each prompt; the same ones whenever it is called."""
    from mmrl.core.streams import Streams
    from mmrl.training.rollouts import Request

    return made.rollout([Request(record, rows // len(PROMPTS)) for record in records()], Streams(0, 0))


def objective(made: FlowPolicy) -> Objective:
    """The recipe flow-grpo without its KL."""
    from mmrl import recipes
    from mmrl.core.objective import Objective
    from mmrl.core.recipe import parse

    recipe = parse(RECIPE, recipes.read(RECIPE), unit=made.unit, options={"penalties.kl.coef": 0.0})
    bounds = dict(recipe.channel(CHANNEL).bounds or {})
    assert bounds["low"] == bounds["high"] == CLIP, bounds
    return Objective(recipe, channel=CHANNEL, unit=made.unit, provides=made.provides, keys=made.keys, dense=made.dense)


@dataclass
class Update:
    """Rollouts with made-up rewards, and the update of the trainer on them: gradients, clipped, and AdamW.

    The learning rate is 0, so that every run sees the same weights; AdamW does its work all the same.
    """

    made: FlowPolicy
    rollouts: Rollouts

    def __post_init__(self) -> None:
        import torch

        self.objective = objective(self.made)
        self.parameters = self.made.parameters_of(CHANNEL)
        self.optimiser = torch.optim.AdamW(self.parameters, lr=0.0, weight_decay=0.0)

    def table(self) -> Table:
        import torch

        from mmrl.training.batch import Scored, table_of

        n = len(self.rollouts.rows)
        reward_nk = torch.rand(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        table = table_of(Scored(self.rollouts, reward_nk, torch.ones(1).double(), ["made"]), CHANNEL)
        return self.objective.prepare(table.updated({"old_logp_nt": table["sampler_logp_nt"]}))

    def gradients(self) -> float:
        """Left in the parameters. Returns the loss."""
        from mmrl.training.update import streaming_update

        for p in self.parameters:
            p.grad = None
        done = streaming_update(self.made, self.objective, self.rollouts, self.table(), channel=CHANNEL)
        assert done.passes == 1, "one pass is enough for a ratio per step"
        return done.loss

    def finish(self) -> None:
        import torch

        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()

    def __call__(self) -> None:
        self.gradients()
        self.finish()


def taking_turns(works: Mapping[str, Callable[[], object]]) -> Callable[[Any], None]:
    """A side that runs all works right after each other, the first one changing with every run: the same process and
    the same seconds, so that a busy machine disturbs all of them alike."""
    names, begin = list(works), [0]

    def work(clock: Any) -> None:
        at = begin[0] % len(names)
        begin[0] += 1
        for name in names[at:] + names[:at]:
            with clock(name):
                works[name]()

    return work


def paired(slow: dict[str, Any], fast: dict[str, Any], key: str = "all") -> dict[str, float]:
    """Median and quartiles of the ratios of works that ran in turns, right after each other. key: all (wall clock) or
    all_cpu, which a busy machine disturbs less."""
    low, median, high = harness.quartiles([a / b for a, b in zip(slow[key], fast[key], strict=True)])
    return {"median": median, "low": low, "high": high}


def show(r: dict[str, float], digits: int = 2) -> str:
    return f"{r['median']:.{digits}f}x ({r['low']:.{digits}f} - {r['high']:.{digits}f})"


def plain_rollout(made: FlowPolicy, rows: int) -> tuple[list[Tensor], Tensor]:
    """States [S+1][N, ...] and pictures by a loop written from the formula, with the same random numbers; float64
    between the forwards. Source: Flow-GRPO (arXiv 2505.05470)."""
    import torch

    from mmrl.core.streams import Streams

    model, w = made.model, made.sampling.guidance
    size = {"height": made.inputs.height, "width": made.inputs.width}
    sigma = [float(s) for s in model.sigmas(made.sampling.steps, **size)]
    owner = [(r, i) for r in records() for i in range(rows // len(PROMPTS))]
    generators = [Streams(0, 0).generator(r.id, i) for r, i in owner]
    prompts = [r.prompt for r, _ in owner]
    halves = [prompts] if w == 1 else [prompts, [""] * rows]
    told = [model.collate(made.conditions(half)) for half in halves]

    def noise() -> Tensor:
        return torch.stack([torch.randn(model.latent_shape(**size), generator=g) for g in generators]).double()

    def velocity(x: Tensor, s: float) -> Tensor:
        found = [model.velocity(x.float(), s, b, **size, scale=None).double() for b in told]
        return found[0] if w == 1 else found[1] + w * (found[0] - found[1])

    states = [noise()]
    with torch.no_grad():
        for s, (now, after) in enumerate(zip(sigma, sigma[1:])):
            x, dt = states[-1], after - now
            v = velocity(x, now)
            if s == len(sigma) - 2:
                states.append(x + dt * v)
                continue
            level = NOISE * (now / (1 - (now if now < 1 else sigma[1]))) ** 0.5
            drift = v + level**2 / (2 * now) * (x + (1 - now) * v)
            states.append(x + drift * dt + level * (-dt) ** 0.5 * noise())
        pictures = model.decode(states[-1].float(), **size)
    return states, pictures
