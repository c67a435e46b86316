"""The configuration of a run: typed, complete, and closed to unknown keys. Loads no torch.

`Config` holds what every family shares. The sections `model`, `sampling` and `inputs` are the family's own typed
models (`mmrl.families`). Reading, merging and error messages are in `mmrl.config_io`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Beta = Annotated[float, Field(ge=0, lt=1)]
ZeroVariance = Literal["keep", "mask", "drop", "resample"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    @model_validator(mode="before")
    @classmethod
    def _words(cls, data: Any) -> Any:
        """YAML reads a bare `off` or `on` as a truth value; where a setting has these words, they are meant."""
        if not isinstance(data, dict):
            return data
        words = {False: "off", True: "on"}
        chosen = {name: get_args(field.annotation) for name, field in cls.model_fields.items()}
        return {k: words[v] if isinstance(v, bool) and words[v] in chosen.get(k, ()) else v for k, v in data.items()}


class RewardSpec(Section):
    """One component (column) of the reward."""

    name: str = Field(description="registered reward; `auto` = chosen by each record's task")
    weight: float = 1.0
    options: dict[str, Any] = Field(default_factory=dict)
    unfinished: float | None = Field(
        None, description="value of rows that ran into the length limit, whatever the reward says (LightningRL: 0)"
    )
    success: float | None = Field(
        None,
        description="rows whose value of this component, before the weight, reaches it are correct (all of its columns "
        "that apply); for recipes and selectors that ask (lightningrl, tracerl); one component at most",
    )


class Rewards(Section):
    components: list[RewardSpec] = Field(default_factory=lambda: [RewardSpec(name="auto")])
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="a reward that raises or returns NaN: stop, or skip the record"
    )
    timeout_s: float | None = Field(None, gt=0)
    workers: int = Field(0, ge=0, le=1024, description="0 = in this process")
    cache: bool = False
    beside: int = Field(
        1,
        ge=1,
        le=1024,
        description="parts that a step's prompts are sampled in; each is scored while the next is sampled. 1 = after",
    )


class Data(Section):
    train: str | list[str] = Field(description="JSONL file(s), or an embedded set such as digits:train")
    eval: str | list[str] | None = None
    on_error: Literal["stop", "skip"] = "stop"
    shuffle: bool = True
    eval_records: int | None = Field(None, ge=1, description="evaluate on the first n records only")


class PromptStatistics(Section):
    """Rewards of each prompt that are remembered over steps, for recipes that ask (advantage `tracked`)."""

    buffer: int = Field(32, ge=1, description="newest rewards kept of each prompt")
    min_count: int = Field(16, ge=1, description="with fewer, the step's whole batch stands in; at most buffer")


class Train(Section):
    steps: int = Field(100, ge=0)
    max_seconds: float | None = Field(
        None, gt=0, description="end after the step that uses up this much training time (evaluation and saving apart)"
    )
    prompts: int = Field(8, ge=1, description="prompts per step, over all ranks")
    group: int = Field(8, ge=1, description="samples per prompt")
    epochs: int | None = Field(None, ge=1, description="passes over each rollout batch; default from the recipe")
    minibatches: int | None = Field(None, ge=1, description="optimiser steps per pass; whole groups")
    zero_variance: ZeroVariance | None = Field(
        None, description="groups whose rewards are all equal; default from the recipe (dapo: resample), else keep"
    )
    resample_rounds: int = Field(
        4, ge=1, le=1000, description="most refills of one step when zero_variance is resample; a selector has its own"
    )
    two_pass: Literal["auto", "always"] = "auto"
    old_pass: Literal["auto", "always"] = Field(
        "auto",
        description="several updates a rollout compare with the log-probs at its start. auto: those of the sampler "
        "where it shares the update's code (image models in float32), else a pass of their own; always: that pass",
    )
    ratio_tolerance: float = Field(1e-3, gt=0, description="first-update check: largest |ratio - 1| without a warning")
    max_bad_steps: int = Field(5, ge=1, description="non-finite steps in a row before the run stops")
    prompt_statistics: PromptStatistics = Field(default_factory=PromptStatistics)
    control: Literal["none", "shuffled"] = Field("none", description="shuffled: rewards permuted inside each group")


class Selection(Section):
    """Which prompts are asked."""

    name: str = "uniform"
    options: dict[str, Any] = Field(default_factory=dict)


class Optimiser(Section):
    kind: Literal["adamw", "adamw8bit"] = "adamw"
    lr: float = Field(1e-5, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0, description="optimiser steps")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    grad_norm: float | None = Field(1.0, gt=0)


class Ema(Section):
    enabled: bool = False
    decay: float = Field(0.99, gt=0, lt=1)
    every: int = Field(1, ge=1)


class Evaluation(Section):
    every: int = Field(0, ge=0, description="steps; 0 = only before and after")
    metric: str = Field("reward", description="decides the best checkpoint")
    judges: list[RewardSpec] = Field(
        default_factory=list, description="rewards that only judge: evaluated, never trained on (image families)"
    )
    samples: int = Field(8, ge=0, description="pictures kept for the report at each evaluation")


class Checkpoints(Section):
    every: int = Field(50, ge=0, description="steps; 0 = only at the end")
    keep_last: int = Field(2, ge=1)
    keep_best: bool = True


class Distributed(Section):
    """How several processes (torchrun, accelerate) share a run; without effect on one."""

    mode: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="ddp: the whole model on every rank; fsdp2: weights, gradients and optimiser state in shards"
    )
    timeout_s: float = Field(1800.0, gt=0, description="how long a rank waits for the others before the run ends")


class Logging(Section):
    every: int = Field(1, ge=1, description="a line for every so many steps, of each channel where phases alternate")
    tensorboard: bool = True
    wandb: bool = False
    trackio: bool = False
    project: str = "mmrl"
    entropy_every: int = Field(10, ge=0, description="steps of a channel between two looks at its entropy; 0 = never")
    rollouts: int = Field(4, ge=0, description="training rollouts written to samples/ at each evaluation")


class Config(Section):
    family: str
    recipe: str
    recipe_options: dict[str, Any] = Field(
        default_factory=dict, description="dotted overrides of the recipe, e.g. bounds.low: 0.1"
    )
    seed: int = Field(0, ge=0, lt=2**63)
    out: str = Field("runs/run", min_length=1)
    device: str = "auto"
    threads: int | None = Field(None, ge=1, le=4096)
    plugins: list[str] = Field(default_factory=list)
    model: Any = None  # the family's Model
    sampling: Any = None  # the family's Sampling
    inputs: Any = None  # the family's Inputs
    data: Data
    rewards: Rewards = Field(default_factory=Rewards)
    selection: Selection = Field(default_factory=Selection)
    train: Train = Field(default_factory=Train)
    optimiser: Optimiser = Field(default_factory=Optimiser)
    ema: Ema = Field(default_factory=Ema)
    eval: Evaluation = Field(default_factory=Evaluation)
    checkpoint: Checkpoints = Field(default_factory=Checkpoints)
    distributed: Distributed = Field(default_factory=Distributed)
    log: Logging = Field(default_factory=Logging)


S = TypeVar("S", bound=BaseModel)


def typed(section: Any, kind: type[S]) -> S:
    """A section of a family as its own model; those of a `Config` that was made in Python may be plain mappings."""
    return section if isinstance(section, kind) else kind.model_validate(section or {})
