"""The sections of a run's configuration that belong to masked-diffusion image models. Loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from image_gen.masked.memory import describe as memory_lines  # noqa: F401
from image_gen.masked.memory import piece_lines as piece_lines
from image_gen.sections import Adapter as Adapter
from mmrl.config import Section
from mmrl.data.rows import Require

#: What a record must have: a prompt is enough, rewards read the rest of it; one to imitate has a picture.
REQUIRE: Require = "prompt"
DEMONSTRATION: Require = "prompt"
#: What imitating one picture costs: one step where a sample has all of them, twice.
SAMPLES_A_DEMONSTRATION = 1 / 8
#: Where the quickstart's supervised control finds pictures to imitate.
QUICKSTART_DEMONSTRATIONS = ["data.train=digits:class?demos=2000"]

Variable = Literal["ratio", "remask", "sample", "guidance"]
VARIABLES: tuple[Variable, ...] = ("ratio", "remask", "sample", "guidance")


class Deviation(Section):
    """Standard deviation of the raw actions while sampling for training."""

    start: float = Field(0.6, gt=0, le=10)
    drop: float = Field(0.3, ge=0, description="lowered by this after every `every` updates of the schedule")
    every: int = Field(500, ge=1)
    floor: float = Field(0.1, gt=0, description="and not below this")
    learned: bool = Field(False, description="a learned log-deviation of each variable, beginning at start; no decay")

    @model_validator(mode="after")
    def _start_above_floor(self) -> Deviation:
        if self.start < self.floor:
            raise ValueError(f"start {self.start:g} lies below floor {self.floor:g}; lower floor too")
        return self


class Schedule(Section):
    """The schedule policy. A folder of weights that holds one (`schedule/`) is taken as it is stored."""

    kind: Literal["table", "net"] = Field("table", description="means by step alone, or of the canvas as well")
    deviation: Deviation = Field(default_factory=Deviation)
    smooth: float = Field(0.0, ge=0, lt=1, description="raw actions smoothed over the steps (AdaGen: 0.8)")
    learn: list[Variable] = Field(default_factory=lambda: list(VARIABLES), min_length=1)
    base: Literal["scheduler", "adanat"] = Field(
        "scheduler", description="the hand-made schedule under the actions: the model's own, or AdaNAT's formula"
    )


class Model(Section):
    path: str = Field(description="folder in aMUSEd's layout, hub id, a stored LoRA, or embedded:masked")
    base: str | None = Field(
        None, description="where path is a LoRA: its base model, in place of the one that the LoRA names"
    )
    adapter: Adapter = Field(default_factory=Adapter)
    schedule: Schedule = Field(default_factory=Schedule)
    autocast: Literal["auto", "off", "bf16"] = Field("auto", description="auto: bf16 on GPUs, off on CPUs")
    gradient_checkpointing: bool = False
    piece_rows: int = Field(16, ge=1, description="images of one decoding step whose graph lives at once")
    detach_uncond: bool = Field(False, description="no gradient through the unconditional half of the guidance")


Temperature = Annotated[float, Field(ge=0, le=1000)]


class Sampling(Section):
    steps: int = Field(12, ge=1, le=1000, description="decoding steps while training")
    mask_schedule: Literal["scheduler", "cosine", "linear", "arccos"] = Field(
        "scheduler", description="share of masks left after each step; scheduler: the model's own"
    )
    remask_temperature: tuple[Temperature, Temperature] | Temperature = Field(
        (2.0, 0.0), description="noise on the confidence: first and last value of a line, or one that falls to 0.01"
    )
    sample_temperature: float = Field(1.0, ge=1e-3, le=1000)
    guidance: float | None = Field(None, ge=0, le=30, description="scale; default the model's own; 1 = one half")
    confidence: Literal["tempered", "untempered"] = Field(
        "tempered", description="what is kept is decided by probabilities as sampled from, or at temperature 1"
    )
    explore: bool = Field(False, description="draw the schedule's actions while training; false: take their means")
    train_steps: int | None = Field(
        None, ge=1, description="train on this many randomly chosen steps of each picture (tokens); default all"
    )
    eval_steps: int | None = Field(None, ge=1, le=1000, description="of evaluation and generate; default steps")
    batch_rows: int = Field(16, ge=1, description="images decoded together")
    decode_rows: int = Field(4, ge=1, description="canvases turned into pictures together")

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> Sampling:
        if self.train_steps is not None and self.train_steps > self.steps:
            raise ValueError(f"train_steps: {self.train_steps} of {self.steps} steps cannot be chosen")
        return self


class Inputs(Section):
    height: int = Field(256, ge=1, le=16384)
    width: int = Field(256, ge=1, le=16384)
    eval_images: int = Field(4, ge=1, le=100_000, description="images of each held-out prompt")
    curve_steps: list[Annotated[int, Field(ge=1, le=1000)]] = Field(
        default_factory=list, description="further step counts that evaluation measures, with both schedules"
    )
    curve_images: int = Field(4, ge=1, le=100_000, description="images of each held-out prompt at these")
    dropped_prompts: float = Field(
        0.1, ge=0, lt=1, description="share of imitated pictures shown without their prompt, so that guidance stays"
    )
    cached_prompts: int = Field(
        2048, ge=1, description="prompts whose encodings are kept; when the run has no more, the encoders are freed"
    )
